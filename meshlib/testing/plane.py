"""The control plane of a mesh for tests: its real tasks, on a loop that runs when it is told to, to a time that it is told."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from meshlib.testing.clock import THREADS, FakeClock, Selector, VirtualLoop
from meshlib.threads import DaemonExecutor
from meshlib.worker import Work, Worker, finish

T = TypeVar("T")

EXACT = 1e-9
"""Seconds by which sums of times may differ from what they mean."""


class _Bounded(Selector):
    """Where the loop would wait, time goes on; where that would be beyond ``limit``, or ``enough`` says so, the loop stops."""

    def __init__(self, clock: FakeClock, enough: Callable[[], bool]) -> None:
        super().__init__(clock)
        self.limit = clock()
        self.stop: Callable[[], object] = lambda: None
        self._enough = enough

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self.threads and (ready := self._real.select(THREADS)):
            return ready
        if timeout is None or self._enough() or self._clock() + timeout > self.limit + EXACT:
            self.stop()
        else:
            self._clock.advance(timeout)
        return ready


class _Loop(VirtualLoop):
    fresh = False
    """True when something was given to it since it last ran."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        self.fresh = True
        return super().call_soon_threadsafe(callback, *args, context=context)


class Plane(Worker):
    """A :class:`~meshlib.worker.Worker` without a thread: what it was given is done by whoever drives it, on ``clock``. A drive
    ends early when ``enough()``. Where a loop runs in the driver's thread already, another thread drives, and is waited for."""

    def __init__(self, clock: FakeClock, enough: Callable[[], bool]) -> None:
        self._clock, self._enough = clock, enough
        self._driving = threading.Lock()
        self._driver: int | None = None
        self._helper = DaemonExecutor(1, "meshlib-testing")
        super().__init__("meshlib-testing")

    def _start(self) -> asyncio.AbstractEventLoop:
        self._selector = _Bounded(self._clock, self._enough)
        loop = _Loop(self._clock, self._selector)
        self._selector.stop = loop.stop
        self._pid, self._loop = os.getpid(), loop
        return loop

    def spawn(self, work: Work[T]) -> Future[T]:
        """See :meth:`meshlib.worker.Worker.spawn`. Whoever asks for the result drives."""
        future = super().spawn(work)
        of_future = future.result

        def result(timeout: float | None = None) -> T:
            self.drive(self._clock())
            return of_future(timeout)

        future.result = result  # type: ignore[method-assign]
        return future

    def drive(self, until: float | None = None) -> None:
        """Run what is due until then (monotonic seconds; default: what can be done now). Time passes only as far as the last
        thing done."""
        loop = self._loop
        if not isinstance(loop, _Loop) or self._driver == threading.get_ident():
            return
        if until is None and not loop.fresh:
            return
        limit = self._clock() if until is None else until
        with self._driving:
            self._elsewhere(lambda: self._run(loop, limit))

    def _elsewhere(self, work: Callable[[], None]) -> None:
        if asyncio._get_running_loop() is None:
            work()
        else:
            self._helper.submit(work).result()

    def _run(self, loop: _Loop, limit: float) -> None:
        self._driver, self._selector.limit, loop.fresh = threading.get_ident(), limit, False
        try:
            loop.run_forever()
        finally:
            self._driver = None

    def stop(self, timeout: float = 5.0, *, last: Work[object] | None = None) -> None:  # noqa: ARG002 - nobody to wait for
        """See :meth:`meshlib.worker.Worker.stop`."""
        with self._lock:
            loop, self._loop = self._loop, None
        if isinstance(loop, _Loop):
            with self._driving:
                self._elsewhere(lambda: self._end(loop, last))
                helper, self._helper = self._helper, DaemonExecutor(1, "meshlib-testing")
                helper.shutdown()  # its thread; the next one has none before it is needed

    def _end(self, loop: _Loop, last: Work[object] | None) -> None:
        self._selector.limit = float("inf")
        self._driver = threading.get_ident()
        try:
            ending = loop.create_task(finish(last))
            while not ending.done():
                loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            self._driver = None
            loop.close()
