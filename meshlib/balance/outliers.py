"""Health from results: which endpoints do so much worse than the others that calls are better spent there.

Everything is judged *against the other instances*: when all fail, or all are slow, none is to blame, and taking some out
would only load the rest. Calls only note what happened (:meth:`Outliers.add`); the control plane judges.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from meshlib.balance.endpoint import Endpoint
from meshlib.errors import ConfigError

LONGEST: Final = 300.0
"""Seconds that no ejection exceeds."""
SIGNIFICANT: Final = 3.0
"""Standard deviations by which a failure rate must differ from the others' (one in 740 by chance)."""
NOTICEABLE: Final = 0.1
"""Difference in failure rate that is worth an ejection, however significant a smaller one is."""
PERCEPTIBLE: Final = 0.01
"""Seconds of difference in latency that are worth one."""
PROBATION: Final = 3
"""Slow answers after which one that was ejected before is ejected again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When an endpoint is an outlier.

    The latest results of each count, ``least`` or as many as come in ``interval`` seconds, and those before them; none is
    older than ``window``. It is one after ``consecutive`` failures in a row; or with as many among the latest and a failure
    rate significantly above the others'; or when its good answers (the latest, of which half of ``least`` are enough to see
    that something has begun) took ``slow`` times the median of the others'. The first time it is ejected for about
    ``seconds``, each time for twice as long; one that is back is out again after three slow answers, or one failure.
    Never more than ``share`` of the instances are out by such judgement (0 turns it off); when less than the share ``panic``
    of them is left, outliers are called all the same.
    """

    window: float = 10.0
    interval: float = 0.5
    consecutive: int = 5
    least: int = 10
    slow: float = 3.0
    seconds: float = 30.0
    share: float = 0.5
    panic: float = 0.3

    def __post_init__(self) -> None:
        for name, low, high in (("window", 0.1, 3600.0), ("interval", 0.01, 3600.0), ("consecutive", 1, 1_000_000),
                                ("least", 2, 1_000_000), ("slow", 1.0, 1e6), ("seconds", 0.01, LONGEST),
                                ("share", 0.0, 1.0), ("panic", 0.0, 1.0)):  # fmt: skip
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and low <= value <= high):
                raise ConfigError(f"Rules({name}=)", f"{value!r} is not in {low:g}..{high:g}", example=f"{name}=0.5")


@dataclass(slots=True)
class Tally:
    """Results of one endpoint: ``good`` answers, which took ``seconds`` in all, and ``failed`` ones."""

    good: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.good + self.failed

    @property
    def mean(self) -> float:
        """Seconds a good answer took; there must be one."""
        return self.seconds / self.good

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.good + other.good, self.failed + other.failed, self.seconds + other.seconds)


class Recent(Tally):
    """The latest results of one endpoint, begun at monotonic time ``since``, and those ``before``, so that what has just begun
    stands beside something. Callers add to it without a lock: of two at once one may be lost, which statistics can bear."""

    __slots__ = ("before", "since")

    def __init__(self, since: float) -> None:
        super().__init__()
        self.since, self.before = since, Tally()

    def turn(self, now: float, rules: Rules) -> bool:
        """Begin anew after enough results, or when they are getting old; False when there have been none lately."""
        age = now - self.since
        if age >= 2 * rules.window:
            return False
        if self.total >= rules.least or age >= rules.window:
            self.before, self.since = Tally(self.good, self.failed, self.seconds), now
            self.good, self.failed, self.seconds = 0, 0, 0.0
        return self.total + self.before.total > 0


class Outliers:
    """The results of one service's endpoints. :meth:`begin` and :meth:`failed` may be called by any thread, :meth:`judge` by
    one at a time. Good answers are added by the fleet itself (to ``endpoint.recent``): each call passes there. Times are of
    one monotonic clock."""

    def __init__(self, rules: Rules, now: float, *, uniform: Callable[[], float] = random.random) -> None:
        self.rules, self._uniform = rules, uniform
        self._known: dict[Endpoint, Recent] = {}
        self._forgiven = now
        self.due = now + rules.interval if rules.share else math.inf
        self.patience = 0.0

    def slow_again(self, seconds: float, now: float) -> bool:
        """True when an answer that took ``seconds``, of one that was ejected before, is a reason to judge soon."""
        return seconds > self.patience and self._soon(now)

    def failed(self, endpoint: Endpoint, now: float) -> bool:
        """Note a failure; True when it is time to judge."""
        recent = endpoint.recent or self.begin(endpoint, now)
        recent.failed += 1
        return now >= self.due or (endpoint.failures >= self.rules.consecutive and self._soon(now))

    def _soon(self, now: float) -> bool:
        return now >= self.due - 0.9 * self.rules.interval

    def begin(self, endpoint: Endpoint, now: float) -> Recent:
        """Results of ``endpoint`` come from now on."""
        recent = endpoint.recent = self._known[endpoint] = Recent(now)
        return recent

    def judge(self, now: float) -> list[tuple[Endpoint, str]]:
        """Who is an outlier, and why, for people to read."""
        known = self._known.copy()  # in one step: callers add to it
        tallies = {one: recent + recent.before for one, recent in known.items()}
        means = [tally.mean for tally in tallies.values() if tally.good]
        # A time-out that is near to what answers take says nothing; see Fleet.hung.
        self.patience = 3.0 * middle(means) if means else 0.0
        found = list(verdicts(tallies, self.rules))
        self._forgive(tallies, now)
        outliers = {endpoint for endpoint, _ in found}  # what they do when they are back is another matter
        for endpoint, recent in known.items():
            if endpoint in outliers or endpoint.retired or not recent.turn(now, self.rules):
                endpoint.recent = None
                self._known.pop(endpoint, None)
        return found

    def _forgive(self, tallies: dict[Endpoint, Tally], now: float) -> None:
        """Whoever has called for no ejection in a whole window is forgiven one."""
        if now - self._forgiven < self.rules.window:
            return
        self._forgiven = now
        for endpoint, tally in tallies.items():
            if endpoint.ejections and not tally.failed and endpoint.ejected is None:
                endpoint.ejections -= 1

    def sentence(self, ejections: int) -> float:
        """Seconds for which one that is ejected for the ``ejections``-th time stays out: doubling, with equal jitter."""
        return min(LONGEST, self.rules.seconds * 2.0 ** min(ejections - 1, 20)) * (0.5 + self._uniform() / 2)


def verdicts(tallies: dict[Endpoint, Tally], rules: Rules) -> Iterator[tuple[Endpoint, str]]:
    """Those that do worse than the rest and are not out already, each with the reason."""
    total, failed = sum(tally.total for tally in tallies.values()), sum(tally.failed for tally in tallies.values())
    means = sorted(tally.mean for tally in tallies.values() if tally.good)
    for endpoint, tally in tallies.items():
        if endpoint.ejected is None:
            others, theirs = total - tally.total, failed - tally.failed
            reason = _fails(endpoint, tally, others, theirs, rules) or _crawls(endpoint, means, rules)
            if reason:
                yield endpoint, reason


def _fails(endpoint: Endpoint, tally: Tally, others: int, theirs: int, rules: Rules) -> str:
    if tally.failed and endpoint.failures >= rules.consecutive and theirs * 2 <= others:
        return f"{endpoint.failures} failures in a row"
    if tally.failed < rules.consecutive or tally.total < rules.least or others < rules.least:
        return ""
    rate, usual = tally.failed / tally.total, (theirs + 1) / (others + 2)  # Laplace: a rate of none is not known to be none
    if rate - usual < max(NOTICEABLE, SIGNIFICANT * math.sqrt(usual * (1 - usual) / tally.total)):
        return ""
    return f"{rate:.0%} of {tally.total} calls failed, of the others' {theirs / others:.0%}"


def _crawls(endpoint: Endpoint, means: list[float], rules: Rules) -> str:
    """``means`` are everybody's, in order: the median of the others is near the middle of them."""
    latest, enough = endpoint.recent, PROBATION if endpoint.ejections else max(PROBATION, rules.least // 2)
    if latest is None or latest.good < enough or len(means) < 2:
        return ""
    mean, usual = latest.mean, middle(means)
    if mean < rules.slow * usual or mean - usual < PERCEPTIBLE:
        return ""
    return f"its answers took {mean * 1e3:.0f} ms, the others' {usual * 1e3:.0f} ms"


def middle(values: list[float]) -> float:
    """The median, of an even number the lower. (The standard library's costs 5 ms to import.)"""
    return sorted(values)[(len(values) - 1) // 2]
