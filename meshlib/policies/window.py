"""Exact sliding windows: never more than N in any half-open window of the length, on a monotonic clock.

A window is arithmetic only. Whoever asks holds a lock and reads the clock inside it, so that times come in order. All of them
take ``ahead``: how many others are to pass before, so that a queue, a warm-up or a share of a quota is a number.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from meshlib.policies.rates import Rate

EXACT: Final = 4096
"""Up to this count every event is remembered; above it, events are counted in cells."""

CELLS: Final = 1000
"""Cells per window: what leaves a long window is given back at most a thousandth of the window late."""

COLD: Final = 3.0
"""How much less a cold limit lets pass."""

REBALANCE: Final = 0.1
"""Seconds after which the number of those who share a quota is asked for again."""

NEVER: Final = -math.inf


class Window:
    """At most ``rate.count`` in any ``rate.seconds``."""

    rate: Rate
    newest: float
    """When the last one passed."""

    def free_in(self, now: float, ahead: int = 0) -> float:
        """Seconds until one may pass after ``ahead`` others; 0.0: now."""
        raise NotImplementedError

    def add(self, now: float) -> None:
        """One passes. Only when :meth:`free_in` said 0.0 at the same time."""
        raise NotImplementedError

    def left(self, now: float) -> int:
        """How many may pass now."""
        raise NotImplementedError

    def take(self, now: float, ahead: int = 0) -> float:
        """:meth:`free_in`, and :meth:`add` where that is 0.0."""
        wait = self.free_in(now, ahead)
        if not wait:
            self.add(now)
        return wait

    @property
    def parts(self) -> Sequence[Window]:
        """The windows of single rates that it is made of."""
        return (self,)

    def idle(self, now: float) -> bool:
        """True when nothing of it is left to remember."""
        return now - self.newest >= self.rate.seconds


class Slots(Window):
    """N slots, each of which may be used once per window: then no window sees more than N. Used in turn, the next one is
    always the one that was used longest ago, so nobody is refused who need not be."""

    def _then(self, place: int) -> float:
        """When the slot was used that is ``place`` uses away."""
        raise NotImplementedError

    def free_in(self, now: float, ahead: int = 0) -> float:
        rounds, place = divmod(ahead, self.rate.count)
        wait = max(0.0, self.rate.seconds - (now - self._then(place)))
        return wait + rounds * self.rate.seconds

    def left(self, now: float) -> int:
        seconds = self.rate.seconds
        return bisect_left(range(self.rate.count), True, key=lambda place: now - self._then(place) < seconds)


class Ring(Slots):
    """Remembers when each of the last ``count`` passed: about 32 bytes for each that did."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._seconds, self._count = rate.seconds, rate.count
        self._times: deque[float] = deque(maxlen=rate.count)  # where one more drops the oldest

    @property
    def newest(self) -> float:  # type: ignore[override]
        return self._times[-1] if self._times else NEVER

    def _then(self, place: int) -> float:
        place -= self._count - len(self._times)  # slots that nobody has used yet come first
        return NEVER if place < 0 else self._times[place]

    def take(self, now: float, ahead: int = 0) -> float:
        if ahead and (wait := self.free_in(now, ahead)):
            return wait
        times = self._times
        if len(times) == self._count:
            age = now - times[0]
            if age < self._seconds:
                return self._seconds - age
        times.append(now)
        return 0.0

    def add(self, now: float) -> None:
        self._times.append(now)


class Cells(Window):
    """Counts events in cells that are a thousandth of the window wide, for counts too big to remember each.

    A cell is dated at its *newest* event and forgotten as a whole, so the bound holds strictly; what is lost is capacity: an
    event may be remembered for one width longer. Cells begin at least a width apart, so there are at most CELLS + 2.
    """

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._width = rate.seconds / CELLS
        self._room = CELLS + 3  # one more, for the rounding of the width
        self._times, self._counts = array("d", [NEVER]) * self._room, array("q", [0]) * self._room
        self._oldest = self._size = self._total = 0
        self._begun = self.newest = NEVER

    def free_in(self, now: float, ahead: int = 0) -> float:
        self._forget(now)
        rounds, ahead = divmod(ahead, self.rate.count)
        surplus = self._total + ahead + 1 - self.rate.count
        wait, cell = 0.0, self._oldest
        while surplus > 0:
            wait = self.rate.seconds - (now - self._times[cell])
            surplus -= self._counts[cell]
            cell = (cell + 1) % self._room
        return wait + rounds * self.rate.seconds

    def add(self, now: float) -> None:
        if not self._size or now - self._begun >= self._width:
            self._begun = now
            self._size += 1
            self._counts[(self._oldest + self._size - 1) % self._room] = 0
        cell = (self._oldest + self._size - 1) % self._room
        self._counts[cell] += 1
        self._times[cell] = self.newest = now
        self._total += 1

    def left(self, now: float) -> int:
        self._forget(now)
        return self.rate.count - self._total

    def _forget(self, now: float) -> None:
        while self._size and now - self._times[self._oldest] >= self.rate.seconds:
            self._total -= self._counts[self._oldest]
            self._oldest = (self._oldest + 1) % self._room
            self._size -= 1


class AllOf(Window):
    """Several limits at once: whoever passes, passes all."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = tuple(windows)
        self.rate = max(window.rate for window in windows)

    @property
    def newest(self) -> float:  # type: ignore[override]
        return self._windows[0].newest

    @property
    def parts(self) -> Sequence[Window]:
        return self._windows

    def free_in(self, now: float, ahead: int = 0) -> float:
        wait = 0.0
        for window in self._windows:  # a loop, for it is on the hot path
            wait = max(wait, window.free_in(now, ahead))
        return wait

    def add(self, now: float) -> None:
        for window in self._windows:
            window.add(now)

    def left(self, now: float) -> int:
        return min(window.left(now) for window in self._windows)


class Part(Window):
    """A window of which only a part is to be had; the rest is ``ahead`` of everybody."""

    def __init__(self, window: Window) -> None:
        self._window, self.rate = window, window.rate

    @property
    def newest(self) -> float:  # type: ignore[override]
        return self._window.newest

    def allowed(self, now: float) -> int:
        """How many of ``rate.count``: at least 1."""
        raise NotImplementedError

    def free_in(self, now: float, ahead: int = 0) -> float:
        allowed = self.allowed(now)
        rounds, ahead = divmod(ahead, allowed)  # of those ahead, so many pass in each window
        return self._window.free_in(now, self.rate.count - allowed + ahead) + rounds * self.rate.seconds

    def add(self, now: float) -> None:
        self._window.add(now)

    def left(self, now: float) -> int:
        return max(0, self._window.left(now) - self.rate.count + self.allowed(now))


class Warming(Part):
    """From a cold start a third of the count, then linearly more, all of it after ``seconds``. It is cold at first, and
    when nobody has passed for ``seconds`` (and for a window: what is remembered is never forgotten by that)."""

    def __init__(self, window: Window, seconds: float) -> None:
        super().__init__(window)
        self._seconds = seconds
        self._since = NEVER

    def allowed(self, now: float) -> int:
        warm = 0.0 if self._cold(now) else min(1.0, (now - self._since) / self._seconds)
        return max(1, math.floor(self.rate.count * (1 + (COLD - 1) * warm) / COLD))

    def _cold(self, now: float) -> bool:
        return now - self.newest >= max(self._seconds, self.rate.seconds)

    def free_in(self, now: float, ahead: int = 0) -> float:
        wait = super().free_in(now, ahead)
        if not wait or ahead or self._cold(now):
            return wait
        # More may pass before anybody's time is over, for it is getting warmer: whichever comes first.
        left, count = self._window.left(now), self.rate.count
        wanted = count - left + 1
        warm = (COLD * wanted / count - 1) / (COLD - 1)
        return min(wait, max(0.0, self._since + warm * self._seconds - now)) if left else wait

    def add(self, now: float) -> None:
        if self._cold(now):
            self._since = now
        super().add(now)


class Share(Part):
    """An equal share of a quota among ``sharers`` (those known now), rounded down, so that the sum never exceeds it. Where that
    is less than one, it is one in a window so much longer: the sum is kept on average, not in each window."""

    def __init__(self, window: Window, sharers: Callable[[], int]) -> None:
        super().__init__(window)
        self._sharers = sharers
        self._known, self._asked = 1, NEVER

    def _now(self, now: float) -> int:
        if now - self._asked >= REBALANCE:
            self._known, self._asked = max(1, self._sharers()), now
        return self._known

    def allowed(self, now: float) -> int:
        return max(1, self.rate.count // self._now(now))

    def free_in(self, now: float, ahead: int = 0) -> float:
        wait, stretch = super().free_in(now, ahead), self._now(now) / self.rate.count
        if stretch <= 1:
            return wait
        gap = self.rate.seconds * stretch
        return max(wait, gap * (ahead + 1) - (now - self.newest))


def window_of(rate: Rate) -> Window:
    """A window for ``rate``: exact, or for big counts in cells."""
    return Ring(rate) if rate.count <= EXACT else Cells(rate)
