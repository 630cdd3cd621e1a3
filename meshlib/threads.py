"""Threads of the operating system, under gevent too, and blocking work in them that goes on while the interpreter exits.

An executor of the standard library takes nothing more as soon as the main thread has ended. Then, registrations are still to
be removed (by an ``atexit`` handler), and heartbeats still to be sent where the app lives on in other threads.

Where gevent has patched the interpreter, ``threading`` makes greenlets of the app's own thread: asyncio allows one running
loop per thread, so ours would keep the app from running any, and a busy app would hold up the heartbeats.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def original(module: str, name: str) -> Any:
    """``module.name`` as the interpreter has it, whatever gevent has put in its place."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(import_module(module), name)


def patched() -> bool:
    """True where gevent makes greenlets of what ``threading`` starts."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def promise() -> Future[Any]:
    """A Future that a thread of the operating system may settle while a greenlet waits for it.

    What guards it is a lock of the operating system, held for an instant and never while waiting. One of gevent's would
    forget the greenlet that wants it when another thread takes it twice in a row: that one waited for ever.
    """
    made: Future[Any] = Future()
    if patched():
        made._condition = threading.Condition(original("_thread", "RLock")())
    return made


def lock() -> threading.Lock:
    """A lock that greenlets and threads of the operating system may want, the control plane's among them.

    gevent's own forgets a greenlet (see :func:`promise`). Who wants this one stops all greenlets of his thread until he has it:
    it is for moments, and nobody who has it may let another greenlet go on, which might want it.
    """
    made: threading.Lock = original("_thread", "allocate_lock")()
    return made


def rlock() -> threading.RLock:
    """The same, reentrant."""
    made: threading.RLock = original("_thread", "RLock")()
    return made


class GreenThread:
    """What a ``threading.Thread`` is, of the operating system although gevent has patched ``threading``. It waits as gevent
    does, so that other greenlets go on meanwhile; a thread started so has no name."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._ended: Future[None] = promise()

    def start(self) -> None:
        """Start it. Raises RuntimeError when there can be no more threads."""
        original("_thread", "start_new_thread")(self._run, ())

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set_result(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most ``timeout`` seconds."""
        with suppress(TimeoutError):
            self._ended.result(timeout)

    def is_alive(self) -> bool:
        """True until its work is done."""
        return not self._ended.done()


def thread(work: Callable[[], object], name: str) -> threading.Thread | GreenThread:
    """A thread that does ``work`` once it is started, and keeps no interpreter from ending."""
    if patched():
        return GreenThread(work)
    return threading.Thread(target=work, name=name, daemon=True)


class DaemonExecutor(ThreadPoolExecutor):
    """Like its parent (which an event loop insists on), with daemon threads: whoever needs a result waits for it."""

    def __init__(self, max_workers: int, name: str) -> None:
        super().__init__(max_workers, name)
        self._name = name
        made = original("queue", "SimpleQueue")  # what synchronises threads must not be what synchronises greenlets
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = made()
        self._idle: queue.SimpleQueue[None] = made()
        self._started = 0
        self._guard = original("_thread", "allocate_lock")()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See :meth:`concurrent.futures.Executor.submit`."""
        future: Future[T] = promise()
        with self._guard:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._take_idle() and self._started < self._max_workers:
                self._start()
            if self._started:
                self._jobs.put(lambda: _perform(future, fn, args, kwargs))
                return future
        _perform(future, fn, args, kwargs)
        return future

    def _take_idle(self) -> bool:
        try:
            self._idle.get_nowait()
        except queue.Empty:
            return False
        return True

    def _start(self) -> None:
        # While the interpreter ends Python 3.12 starts no thread any more: those there are do it, or the caller itself.
        with suppress(RuntimeError):
            thread(self._work, f"{self._name}-{self._started}").start()
            self._started += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # while waiting, hold on to nothing of it
            self._idle.put(None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - the parent's
        """Take no more; the threads end once they have done what they were given. Waits for nothing."""
        with self._guard:
            if not self._closed:
                self._closed = True
                for _ in range(self._started):
                    self._jobs.put(None)


def _perform(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as problem:  # noqa: BLE001 - the future carries it
        future.set_exception(problem)
    else:
        future.set_result(result)
