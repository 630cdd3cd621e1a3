"""How the calls of the last seconds ended, or the last so many calls: how many failed, how many were slow.

Whoever ends well only adds one to a number, without a lock: he is the reason why a closed breaker costs next to nothing. Should
two threads make one of their two, the rates err on the side of opening. What is bad is counted under a lock, exactly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from meshlib.threads import lock

TICKS: Final = 20
"""Steps in which a window of time slides."""

FAILED: Final = 1
SLOW: Final = 2


@dataclass(frozen=True, slots=True)
class Counts:
    """How many ``calls`` ended, and how many of them failed or were slow; a call may be both."""

    calls: int = 0
    failures: int = 0
    slow: int = 0

    @property
    def failure_rate(self) -> float:
        """From 0 to 1; 0 without calls."""
        return self.failures / self.calls if self.calls else 0.0

    @property
    def slow_rate(self) -> float:
        """From 0 to 1; 0 without calls."""
        return self.slow / self.calls if self.calls else 0.0

    def __str__(self) -> str:
        slow = f", {self.slow} were slow" if self.slow else ""
        return f"{self.failures} of {self.calls} calls failed{slow}"


class Window(Protocol):
    """What both kinds can do."""

    def good(self) -> bool:
        """A call ended well. True when the window is to be judged: sometimes that alone makes the rates too high."""
        ...

    def bad(self, failed: bool, slow: bool) -> None:
        """A call ended that failed, or was slow, or both. The window is to be judged."""
        ...

    def judged(self) -> Counts:
        """What counts now, for whoever judges it."""
        ...

    def counts(self) -> Counts:
        """The same, for whoever only looks."""
        ...

    def forked(self) -> None:
        """In a child process: a thread of the parent may have held the lock."""
        ...


class _Bucket:
    __slots__ = ("calls", "end", "failures", "slow", "tick")

    def __init__(self, tick: int, end: float) -> None:
        self.tick, self.end = tick, end
        self.calls = self.failures = self.slow = 0


class TimeWindow:
    """A call counts for ``seconds`` after its end, and then for at most a twentieth of that. There are 21 buckets at most."""

    def __init__(self, seconds: float, minimum: int, clock: Callable[[], float]) -> None:
        self._width, self._minimum, self._clock = seconds / TICKS, minimum, clock
        self._bucket = _Bucket(0, -math.inf)
        self._past: deque[_Bucket] = deque()
        self._before = Counts()
        self._lock = lock()
        # True while one that ends well may make the rates too high: below the minimum, by being counted, and once the window
        # has moved, as good ones may have left it.
        self._doubt = False

    def good(self) -> bool:
        bucket = self._bucket
        now = self._clock()
        if now >= bucket.end:
            with self._lock:
                bucket = self._at(now)
        bucket.calls += 1
        return self._doubt

    def bad(self, failed: bool, slow: bool) -> None:
        with self._lock:
            bucket = self._at(self._clock())
            bucket.calls += 1
            bucket.failures += failed
            bucket.slow += slow

    def judged(self) -> Counts:
        with self._lock:
            self._doubt = True  # before the counts are read: whoever adds to them afterwards sees it
            counts = self._counts()
            self._doubt = bool(counts.failures or counts.slow) and counts.calls < self._minimum
            return counts

    def counts(self) -> Counts:
        with self._lock:
            return self._counts()

    def forked(self) -> None:
        self._lock = lock()

    def _counts(self) -> Counts:
        now, before = self._at(self._clock()), self._before
        return Counts(before.calls + now.calls, before.failures + now.failures, before.slow + now.slow)

    def _at(self, now: float) -> _Bucket:
        """The bucket for ``now``, under the lock."""
        if now < self._bucket.end:
            return self._bucket
        tick = int(now // self._width)
        self._past.append(self._bucket)
        while self._past and self._past[0].tick < tick - TICKS:
            self._past.popleft()
        # Counted again at each turn: somebody may have added to a bucket when it was over already.
        past = [(one.calls, one.failures, one.slow) for one in self._past]
        self._before = Counts(*map(sum, zip(*past, strict=True)))
        self._doubt = bool(self._before.failures or self._before.slow)
        self._bucket = _Bucket(tick, max((tick + 1) * self._width, math.nextafter(now, math.inf)))
        return self._bucket


class CountWindow:
    """The last ``size`` calls, one byte for each."""

    def __init__(self, size: int, minimum: int) -> None:
        self._ends, self._minimum = bytearray(size), minimum
        self._place = self._calls = self._failures = self._slow = 0
        self._lock = lock()

    def good(self) -> bool:
        with self._lock:
            place = self._place
            if self._calls < len(self._ends) or self._ends[place]:
                self._put(0)
                return self._calls <= self._minimum and bool(self._failures or self._slow)
            self._place = place + 1 if place + 1 < self._calls else 0  # it was a good one, too
            return False

    def bad(self, failed: bool, slow: bool) -> None:
        with self._lock:
            self._put(FAILED * failed + SLOW * slow)

    def judged(self) -> Counts:
        return self.counts()

    def counts(self) -> Counts:
        with self._lock:
            return Counts(self._calls, self._failures, self._slow)

    def forked(self) -> None:
        self._lock = lock()

    def _put(self, end: int) -> None:
        ends, place = self._ends, self._place
        old = ends[place]  # 0 as well where nobody was
        ends[place] = end
        self._place = place + 1 if place + 1 < len(ends) else 0
        if self._calls < len(ends):
            self._calls += 1
        if old or end:
            self._failures += (end & FAILED) - (old & FAILED)
            self._slow += ((end & SLOW) - (old & SLOW)) // SLOW
