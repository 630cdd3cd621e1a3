"""Health from results: which endpoints do so much worse than the others that calls are better spent there.

Everything is judged *against the other instances*: when all fail, or all are slow, none is to blame, and taking some out
would only load the rest. Calls only note what happened (:meth:`Outliers.add`); the control plane judges.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from meshlib.balance.endpoint import Endpoint
from meshlib.errors import ConfigError

SAMPLES: Final = 50_000
"""Results that may wait for the judge; beyond that the oldest are lost."""
LONGEST: Final = 300.0
"""Seconds that no ejection exceeds."""
SIGNIFICANT: Final = 3.0
"""Standard deviations by which a failure rate must differ from the others' (one in 740 by chance)."""
NOTICEABLE: Final = 0.1
"""Difference in failure rate that is worth an ejection, however significant a smaller one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When an endpoint is an outlier.

    Results of the last ``window`` seconds count, looked at every ``interval``. ``consecutive`` failures in a row, or
    ``least`` results with a failure rate significantly above the others', or (of ``least`` good answers) a mean latency of
    ``slow`` times the median of the others', eject it: the first time for about ``seconds``, each time for twice as long.
    Never more than ``share`` of the instances are out by such judgement (0 turns it off); when less than the share
    ``panic`` of them is left, outliers are called all the same.
    """

    window: float = 10.0
    interval: float = 0.5
    consecutive: int = 5
    least: int = 10
    slow: float = 4.0
    seconds: float = 5.0
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
    """Results of one endpoint in half a window: ``good`` answers, which took ``seconds`` in all, and ``failed`` ones."""

    good: int = 0
    failed: int = 0
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.good + other.good, self.failed + other.failed, self.seconds + other.seconds)


class Outliers:
    """The results of one service's endpoints. :meth:`add` may be called by any thread, the rest by one at a time."""

    def __init__(
        self, rules: Rules, *, clock: Callable[[], float] = time.monotonic, uniform: Callable[[], float] = random.random
    ) -> None:
        self.rules, self._clock, self._uniform = rules, clock, uniform
        self._samples: deque[tuple[Endpoint, float, bool]] = deque(maxlen=SAMPLES)
        self._now: dict[Endpoint, Tally] = {}
        self._before: dict[Endpoint, Tally] = {}
        self._turn = clock() + rules.window / 2
        self._last = clock()
        self.patience = 0.0

    def add(self, endpoint: Endpoint, seconds: float, *, failed: bool) -> bool:
        """Note a result; True when it is time to judge."""
        self._samples.append((endpoint, seconds, failed))
        now = self._clock()
        soon = failed and endpoint.failures >= self.rules.consecutive
        if now - self._last < (self.rules.interval / 10 if soon else self.rules.interval):
            return False
        self._last = now
        if not self.rules.share:
            self._samples.clear()
        return self.rules.share > 0

    def judge(self) -> list[tuple[Endpoint, str]]:
        """Who is an outlier, and why, for people to read."""
        self._collect()
        tallies = {one: tally + self._before.get(one, Tally()) for one, tally in self._now.items()}
        tallies |= {one: tally for one, tally in self._before.items() if one not in tallies}
        tallies = {one: tally for one, tally in tallies.items() if not one.retired}
        means = [tally.seconds / tally.good for tally in tallies.values() if tally.good]
        # Time-outs that are near to what answers take say nothing; see Fleet.hung.
        self.patience = 3.0 * middle(means) if means else 0.0
        candidates = {one: tally for one, tally in tallies.items() if one.ejected is None}
        return list(verdicts(candidates, tallies.values(), self.rules))

    def sentence(self, ejections: int) -> float:
        """Seconds for which one that is ejected for the ``ejections``-th time stays out: doubling, with equal jitter."""
        return min(LONGEST, self.rules.seconds * 2.0 ** min(ejections - 1, 20)) * (0.5 + self._uniform() / 2)

    def _collect(self) -> None:
        now, samples = self._clock(), self._samples
        if now >= self._turn:
            self._turn = now + self.rules.window / 2
            self._before, self._now = self._now, {}
            for endpoint, tally in self._before.items():
                if endpoint.ejections and not tally.failed and endpoint.ejected is None:
                    endpoint.ejections -= 1  # half a window without fault: one is forgiven
        for _ in range(len(samples)):
            endpoint, seconds, failed = samples.popleft()
            tally = self._now.get(endpoint) or self._now.setdefault(endpoint, Tally())
            if failed:
                tally.failed += 1
            else:
                tally.good += 1
                tally.seconds += seconds


def verdicts(candidates: dict[Endpoint, Tally], everybody: Iterable[Tally], rules: Rules) -> Iterator[tuple[Endpoint, str]]:
    """Those of ``candidates`` that do worse than the rest of ``everybody``, each with the reason."""
    everybody = list(everybody)
    good, failed = sum(tally.good for tally in everybody), sum(tally.failed for tally in everybody)
    for endpoint, tally in candidates.items():
        others, theirs = good + failed - tally.good - tally.failed, failed - tally.failed
        reason = _fails(endpoint, tally, others, theirs, rules) or _crawls(tally, everybody, rules)
        if reason:
            yield endpoint, reason


def _fails(endpoint: Endpoint, tally: Tally, others: int, theirs: int, rules: Rules) -> str:
    if tally.failed and endpoint.failures >= rules.consecutive and theirs * 2 <= others:
        return f"{endpoint.failures} failures in a row"
    total = tally.good + tally.failed
    if total < rules.least or others < rules.least:
        return ""
    rate, usual = tally.failed / total, (theirs + 1) / (others + 2)  # Laplace: a rate of none is not known to be none
    if rate - usual < NOTICEABLE or rate - usual < SIGNIFICANT * math.sqrt(usual * (1 - usual) / total):
        return ""
    return f"{rate:.0%} of {total} calls failed, of the others' {theirs / others:.0%}"


def _crawls(tally: Tally, everybody: list[Tally], rules: Rules) -> str:
    if tally.good < rules.least:
        return ""
    means = [other.seconds / other.good for other in everybody if other.good and other is not tally]
    if not means:
        return ""
    mean, usual = tally.seconds / tally.good, middle(means)
    if mean < rules.slow * usual or mean - usual < 0.01:
        return ""
    return f"its answers took {mean * 1e3:.0f} ms, the others' {usual * 1e3:.0f} ms"


def middle(values: list[float]) -> float:
    """The median, of an even number the lower. (The standard library's costs 5 ms to import.)"""
    return sorted(values)[(len(values) - 1) // 2]
