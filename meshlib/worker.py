"""The control plane's event loop: one background thread per process, started on first use and again after a fork."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from meshlib.threads import DaemonExecutor, GreenThread, original, promise, rlock, thread

log = logging.getLogger(__name__)

T = TypeVar("T")

Work: TypeAlias = Callable[[], Coroutine[Any, Any, T]]

BLOCKING = 8
"""Threads for what blocks: looking up names, writing snapshots."""

BEGINNINGS = 10
"""Rounds of the loop in which tasks may begin before they are cancelled."""

# What a child process has of its parent: destroyed there, tasks would complain and sockets would be closed.
_abandoned: list[object] = []


class Worker:
    """Runs coroutines on its own loop. All methods may be called from any thread but the worker's own, unless they say so.

    Nothing exists until the first :meth:`spawn`. A child process finds the loop of its parent, which has no thread there,
    and starts its own (by pid, so that forks behind Python's back are seen too).
    """

    def __init__(self, name: str = "meshlib-worker") -> None:
        self.name = name
        self._reset()

    def forked(self) -> None:
        """Forget everything of the parent: its loop and sockets are abandoned, not closed."""
        _abandoned.append((self._loop, self._running))
        self._reset()

    def _reset(self) -> None:
        self._pid = 0
        # Reentrant: a flow that nobody finished may be collected, and have something done here, wherever this thread is.
        self._lock = rlock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | GreenThread | None = None
        self._running: set[Future[Any]] = set()

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop of this process."""
        if self._pid != os.getpid() and self._pid:
            self.forked()
        with self._lock:
            return self._loop or self._start()

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = _new_loop()
        loop.set_default_executor(DaemonExecutor(BLOCKING, f"{self.name}-blocking"))
        started = thread(lambda: _run(loop), self.name)
        started.start()
        self._pid, self._loop, self._thread = os.getpid(), loop, started
        return loop

    def spawn(self, work: Work[T]) -> Future[T]:
        """Run ``work()`` on the loop."""
        while (future := self._spawn(work)) is None:
            pass  # stopped by another thread in between: a new one
        return future

    def _spawn(self, work: Work[T]) -> Future[T] | None:
        """None when the loop is being stopped: what it is given then, it may have no time to begin, or to say so."""
        loop, coroutine = self.loop(), work()
        with self._lock:
            future = perform(loop, coroutine) if loop is self._loop else None
        if future is None:
            coroutine.close()
            return None
        self._running.add(future)  # the loop itself holds its tasks only weakly
        future.add_done_callback(self._running.discard)
        return future

    def report(self, work: Work[object]) -> None:
        """Run ``work()`` in the background; an exception of it is a bug of ours and logged as one."""

        async def guarded() -> None:
            try:
                await work()
            except Exception:  # the control plane must survive any single task
                log.exception("a background task of meshlib failed")

        self.spawn(guarded)

    def tell(self, news: Callable[[], object]) -> None:
        """Have ``news()`` called on the loop, if there is one: nothing is started for it."""
        with self._lock:
            if self._loop is not None and self._pid == os.getpid():
                self._loop.call_soon_threadsafe(news)

    @property
    def running(self) -> bool:
        """True when this process has started it."""
        return self._loop is not None and self._pid == os.getpid()

    def stop(self, timeout: float = 5.0, *, last: Work[object] | None = None) -> None:
        """Cancel what runs, then run ``last()``, stop the loop and wait ``timeout`` seconds for the thread. It can be started
        again."""
        if not self.running:
            return
        with self._lock:
            loop, running = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or running is None:  # another thread is stopping it
            return
        ending: set[object] = set()
        loop.call_soon_threadsafe(lambda: ending.add(loop.create_task(finish(last))))
        running.join(timeout)
        if running.is_alive():
            log.warning("the thread %s did not stop within %g s", self.name, timeout)


def _new_loop() -> asyncio.AbstractEventLoop:
    selector = original("selectors", "DefaultSelector")
    if selector is selectors.DefaultSelector:
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(selector())  # gevent's selector waits with the greenlets of a thread; ours has none


def perform(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """What ``asyncio.run_coroutine_threadsafe`` does, with a :func:`~meshlib.threads.promise`. Raises RuntimeError for a loop
    that is closed."""
    future: Future[T] = promise()
    loop.call_soon_threadsafe(_begin, loop, coroutine, future)
    return future


def _begin(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], future: Future[T]) -> None:
    task = loop.create_task(coroutine)

    def cancel(settled: Future[T]) -> None:  # by its argument: no cycle, which would keep a result until it is collected
        if settled.cancelled():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)

    task.add_done_callback(lambda _: _settle(future, task))
    future.add_done_callback(cancel)


def _settle(future: Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        future.cancel()
    if not future.set_running_or_notify_cancel():
        return
    if (problem := task.exception()) is not None:
        future.set_exception(problem)
    else:
        future.set_result(task.result())


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    with suppress(RuntimeError):
        loop.run_until_complete(_cancel_all())  # what was spawned while it stopped
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def finish(last: Work[object] | None) -> None:
    """On the loop: cancel what runs there, run ``last()``, stop it."""
    try:
        await _cancel_all()
        if last is not None:
            async with asyncio.timeout(2.0):
                await last()
    except Exception:  # a bug in cleaning up must not keep the loop running
        log.exception("stopping the control plane failed")
    finally:
        asyncio.get_running_loop().stop()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    # Each has its first step before: what a library's task wraps (anyio's do) would be left behind, never awaited, and Python
    # says so on standard error.
    for _ in range(BEGINNINGS):
        if all(_begun(task) for task in tasks):
            break
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=2.0)


def _begun(task: asyncio.Task[Any]) -> bool:
    coroutine = task.get_coro()
    return not inspect.iscoroutine(coroutine) or inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED
