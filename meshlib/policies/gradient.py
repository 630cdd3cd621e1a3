"""How many at once, by what latency says: Gradient2 of Netflix's concurrency-limits (Gradient2Limit.java, whose numbers are the
defaults here), with one thing added.

Window by window, the limit is multiplied by ``tolerance * long / short`` (between 0.5 and 1), where ``short`` is the latency of
this window and ``long`` the average of many, and a small ``queue`` is added. So it grows while latency stays what it was, and
shrinks when it rises.

There the average learns from every window. Under a load that stays too high it learns the queue, until that is what it takes
for normal: the limit drifts to its maximum. Here it learns only from windows in which nobody was refused, or that were faster;
and when there has been none for long, it is measured anew: for one window an eighth of the limit are let in. What is measured
then is either the same as before, or the news.
"""

from __future__ import annotations

from typing import Final, Protocol

WARM_UP: Final = 10
"""Windows of which the average is a plain one."""
UNSURE: Final = 5
"""Full windows on end after which the base is measured anew, while nobody knows how good it is."""
PROBE: Final = 8
"""The part of the limit that is let in meanwhile: one in so many."""


class Numbers(Protocol):
    """What the estimate goes by; see :class:`~meshlib.policies.adaptive.adaptive_concurrency`."""

    @property
    def initial(self) -> int: ...
    @property
    def least(self) -> int: ...
    @property
    def most(self) -> int: ...
    @property
    def smoothing(self) -> float: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def queue(self) -> int: ...
    @property
    def long_window(self) -> int: ...


class Gradient:
    """The estimate. ``limit`` is how many may be under way now, ``short`` the latency of the last window and ``base`` what it
    is without a queue (seconds; 0.0: not known yet). ``epoch`` changes when samples of calls begun before say nothing."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._estimate = float(numbers.initial)
        self.base = self.short = 0.0
        self.epoch = 0
        self._windows = 0
        self._full = 0
        self._patience = UNSURE
        self._probing = False
        self.limit = self._estimate

    def update(self, latency: float, most: float, *, full: bool) -> None:
        """A window is over: its average ``latency`` (seconds), how many were under way at ``most``, and whether it was
        ``full``: somebody was refused, or had to wait for the loop."""
        self.short = latency
        if self._probing:
            self._measured(latency)
            return
        self._learn(latency, full=full)
        if most >= self._estimate / 2:  # else it is not the limit that bounds it
            self._estimate = self._next(latency)
        self.limit = self._estimate
        self._full = self._full + 1 if full else 0
        if self._full >= self._patience:
            self._probe()

    def _next(self, latency: float) -> float:
        numbers, now = self._numbers, self._estimate
        gradient = max(0.5, min(1.0, numbers.tolerance * self.base / latency))
        aim = now * gradient + numbers.queue
        smoothed = now * (1 - numbers.smoothing) + aim * numbers.smoothing
        return max(float(numbers.least), min(float(numbers.most), smoothed))

    def _learn(self, latency: float, *, full: bool) -> None:
        if full and self.base and latency >= self.base:
            return
        self._windows += 1
        if self._windows <= WARM_UP:
            self.base += (latency - self.base) / self._windows
        else:
            self.base += (latency - self.base) * 2 / (self._numbers.long_window + 1)
        if self.base > 2 * latency:  # it is over: no need to wait for the average
            self.base *= 0.9

    def _probe(self) -> None:
        self._probing = True
        self.epoch += 1
        self.limit = max(float(self._numbers.least), self._estimate / PROBE)

    def _measured(self, latency: float) -> None:
        # Much faster than was thought: the limit was too high, and an eighth of it perhaps still is.
        self._patience = UNSURE if latency < 0.8 * self.base else self._numbers.long_window
        self.base, self._windows = latency, WARM_UP
        self._probing, self._full = False, 0
        self.limit = self._estimate
