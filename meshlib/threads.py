"""Blocking work in threads that go on while the interpreter exits.

An executor of the standard library takes nothing more as soon as the main thread has ended. Then, registrations are still to
be removed (by an ``atexit`` handler), and heartbeats still to be sent where the app lives on in other threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonExecutor(ThreadPoolExecutor):
    """Like its parent (which an event loop insists on), with daemon threads: whoever needs a result waits for it."""

    def __init__(self, max_workers: int, name: str) -> None:
        super().__init__(max_workers, name)
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0
        self._guard = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See :meth:`concurrent.futures.Executor.submit`."""
        future: Future[T] = Future()
        with self._guard:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._idle.acquire(blocking=False) and self._started < self._max_workers:
                self._start()
            if self._started:
                self._jobs.put(lambda: _perform(future, fn, args, kwargs))
                return future
        _perform(future, fn, args, kwargs)
        return future

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True)
        # While the interpreter ends Python 3.12 starts no thread any more: those there are do it, or the caller itself.
        with suppress(RuntimeError):
            thread.start()
            self._started += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # while waiting, hold on to nothing of it
            self._idle.release()

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
