"""Time as a number that tests move."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

THREADS = 5.0
"""Real seconds that a virtual loop gives a thread before it lets time go on: more than a busy machine keeps one waiting for its
turn, or time would go on without it."""


class FakeClock:
    """A clock that stands still until told otherwise: pass it wherever a ``clock`` is taken."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; time does not go backwards."""
        if seconds < 0:
            raise ValueError(f"{seconds} s: a clock does not go backwards")
        self.now += seconds


class Selector(selectors.BaseSelector):
    """Where a loop would wait for ``timeout`` seconds, the clock jumps by them instead."""

    def __init__(self, clock: FakeClock) -> None:
        self._real = selectors.DefaultSelector()
        self._clock = clock
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.threads:  # nothing is scheduled, or a thread works: let it, in no time of the clock
            ready = self._real.select(THREADS)
        if timeout is not None and not ready:
            self._clock.advance(max(0.0, timeout))
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a :class:`FakeClock`: sleeping, time-outs and timers take no real time, in order.

    ``to_thread`` takes no time of the clock, unless the thread is at it for longer than :data:`THREADS` real seconds (it may be
    waiting for a timer)."""

    def __init__(self, clock: FakeClock, selector: Selector | None = None) -> None:
        self._fake, self._waiting = clock, selector or Selector(clock)
        super().__init__(self._waiting)
        # Timers this near are due: at the size of today's wall-clock times, a float cannot tell a nanosecond.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._fake()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._waiting.threads += 1
        future.add_done_callback(self._came_back)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109
        """Wait for the threads: the time-out that ``asyncio.Runner`` gives (Python 3.12 on) would be virtual, and over at
        once."""
        await super().shutdown_default_executor()

    def _came_back(self, _: object) -> None:
        self._waiting.threads -= 1


def run_virtual(main: Coroutine[Any, Any, T], *, clock: FakeClock | None = None) -> T:
    """``asyncio.run`` on a :class:`VirtualLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock or FakeClock())) as runner:
        return runner.run(main)
