"""How late an event loop is: what a task waits for before it begins, which nobody sees who measures from its beginning.

One timer per loop, started by the first who asks, and ended when nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Final

EVERY: Final = 0.02
"""Seconds between two looks."""
LATE: Final = 0.02
"""Seconds that a look may be late without it meaning anything."""
CALM: Final = 10
"""Looks in time after which it is over; those that nobody asked between, after which nobody looks."""

_known: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Lag] = weakref.WeakKeyDictionary()


def current() -> float:
    """Seconds by which the running loop is late, 0.0 where there is none or where it was late only once: a pause of the
    collector is no queue."""
    loop = asyncio._get_running_loop()  # where there is none, this costs a tenth of an exception
    if loop is None:
        return 0.0
    lag = _known.get(loop)
    if lag is None:
        lag = _known[loop] = Lag(loop)
    return lag.ask()


class Lag:
    """Of one loop, by the clock of that loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._time = loop.time
        self._due: float | None = None
        self._last = 0.0
        self._late = 0
        self._calm = CALM
        self._unasked = 0

    def ask(self) -> float:
        """Seconds (float) that who is served now has waited on average: for the round before, of which it came at any time, and
        for those before it in this round."""
        self._unasked = 0
        if self._due is None:
            self._schedule()
            return 0.0
        if self._calm >= CALM:
            return 0.0
        late = self._last / 2 + max(0.0, self._time() - self._due)
        return late if late > LATE else 0.0

    def _schedule(self) -> None:
        loop = self._loop()
        if loop is not None:
            self._due = self._time() + EVERY
            loop.call_at(self._due, self._look)

    def _look(self) -> None:
        assert self._due is not None
        self._last = self._time() - self._due
        self._late = self._late + 1 if self._last > LATE else 0
        if self._late:
            self._calm = 0 if self._late > 1 else self._calm
        else:
            self._calm += 1
        self._unasked += 1
        if self._unasked > CALM:
            self._due, self._last, self._calm = None, 0.0, CALM
        else:
            self._schedule()
