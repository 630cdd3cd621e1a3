"""Who is under way, and how long it took: what the estimate of :mod:`meshlib.policies.gradient` lives on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from meshlib.errors import CallError
from meshlib.outcome import Outcome, of_answer, of_error
from meshlib.policies.gradient import Gradient, Numbers
from meshlib.threads import lock

WINDOW: Final = 0.1
"""Seconds that a window lasts at least."""
SAMPLES: Final = 10
"""Samples that it has at least."""
QUEUES: Final = 1.5
"""Times the base beyond which latency means a queue, and not that requests differ."""
RISE: Final = 1.05
"""Growth of the shortest latency per window in which none was shorter."""


class Limiter:
    """Asked before, told after. There is no lock but one that nobody waits for: whoever finds it taken leaves the work to the
    other. So calls in threads may be one or two more than the limit, for a moment."""

    def __init__(self, numbers: Numbers, clock: Callable[[], float], lag: Callable[[], float]) -> None:
        self.gradient = Gradient(numbers)
        self._clock, self.lag = clock, lag
        self.fastest = 0.0
        self._most, self._usual = 0.0, 0.0
        self._begin_window()
        self.forked()

    def forked(self) -> None:
        """In a child process (and at first): the calls under way are the parent's."""
        self._under_way: set[Permit] = set()
        self._lock = lock()

    def __len__(self) -> int:
        return len(self._under_way)

    def take(self, lag: float, share: float = 1.0) -> Permit | None:
        """A permit, if fewer than ``share`` of the limit are under way. Those who wait for the event loop, which is late by
        ``lag`` seconds, count, too."""
        occupied = self.occupied(lag)
        if occupied >= self.gradient.limit * share:
            self._full = True
            return None
        self._full = self._full or lag > 0
        self._most = max(self._most, occupied + 1)
        permit = Permit(self._under_way, self._clock(), lag, self.gradient.epoch)
        self._under_way.add(permit)
        return permit

    def occupied(self, lag: float) -> float:
        """How many are under way, or will be as soon as the loop, which is late by ``lag`` seconds, comes to them."""
        base = self.gradient.base
        return len(self._under_way) + (lag / base if lag and base else 0.0)

    def needs(self, lag: float) -> float:
        """Seconds that a call which comes now takes at least: what waited for the loop, and is as fast as any then; or, where
        latency says that calls queue, as long as that many took. 0.0 when nobody is before it."""
        gradient, under_way = self.gradient, len(self._under_way)
        if not (under_way or lag):
            return 0.0
        queues = gradient.short > QUEUES * gradient.base
        queued = gradient.short * (under_way + 1) / max(1.0, self._usual) if queues else 0.0
        return max(queued, lag + self.fastest)

    def answered(self, permit: Permit, answer: Any) -> None:
        """The call has its answer, which stands since ``answer.head_at`` where that is known."""
        outcome = of_answer(answer)
        if outcome is not Outcome.PUSHBACK:
            self._add(permit, getattr(answer, "head_at", None), failed=outcome is Outcome.FAILED)

    def raised(self, permit: Permit, problem: BaseException) -> None:
        """The call failed. What ourselves or others refused, and cancellation, says nothing."""
        if isinstance(problem, Exception) and (
            not isinstance(problem, CallError) or of_error(problem) is Outcome.FAILED
        ):  # fmt: skip
            self._add(permit, None, failed=True)

    def _add(self, permit: Permit, end: float | None, *, failed: bool) -> None:
        now = self._clock()
        latency = (now if end is None else end) - permit.begun + permit.lag
        # Whoever fails at once says nothing of how fast work is; whoever fails late does.
        if permit.epoch == self.gradient.epoch and not (failed and latency < self.gradient.base):
            self._latencies.append(latency)
        if len(self._latencies) >= SAMPLES and now >= self._until and self._lock.acquire(blocking=False):
            try:
                self._end_window()
            finally:
                self._lock.release()

    def _end_window(self) -> None:
        latencies = self._latencies
        if len(latencies) < SAMPLES:  # somebody was quicker
            return
        quickest = min(latencies)
        self.fastest = min(quickest, self.fastest * RISE) or quickest
        self._usual = self._most
        self.gradient.update(max(sum(latencies) / len(latencies), 1e-9), self._most, full=self._full)
        self._begin_window()

    def _begin_window(self) -> None:
        self._latencies: list[float] = []
        self._most, self._full = 0.0, False
        self._until = self._clock() + WINDOW


class Permit:
    """One call under way, since ``begun``, which waited ``lag`` seconds for the loop before. Called, it is so no more."""

    __slots__ = ("_under_way", "begun", "epoch", "lag")

    def __init__(self, under_way: set[Permit], begun: float, lag: float, epoch: int) -> None:
        self._under_way, self.begun, self.lag, self.epoch = under_way, begun, lag, epoch

    def __call__(self) -> None:
        self._under_way.discard(self)
