"""A second attempt beside one that takes long: who answers first has won."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from meshlib.errors import AttemptError, ConfigError, NoInstances
from meshlib.flow import FUNCTION, Call, Flow, Layer, Next, Race
from meshlib.policies.base import Policy, Site
from meshlib.policies.budget import BUDGET, RetryBudget, checked_budget, spending

if TYPE_CHECKING:
    from meshlib.balance.endpoint import Endpoint

SAMPLE: Final = 256
"""Latencies of which the quantile is taken: those of the last so many calls."""

RENEWED: Final = 16
"""After how many calls the quantile is taken anew."""

_NO_LAST_RESORT: Final = 1_000  # a rival goes to no ejected endpoint


@dataclass(frozen=True, kw_only=True)
class hedge(Policy):  # noqa: N801
    """An idempotent call that has no answer after ``delay`` seconds (float) is sent to another instance, too, up to
    ``attempts`` times in all; the first answer is taken, the others are cancelled. With ``quantile`` instead (default 0.95),
    the delay is what that share of the recent calls took; it begins after ``minimum`` of them.

    An answer is an answer, whatever its status; an attempt that fails before the delay is over is followed by the next at
    once. The further attempts come out of the same ``budget`` as those of ``retry`` (None: out of none), and end by the same
    deadline. A blocking call races in threads, each of which ends with its attempt.
    """

    kind: ClassVar[str] = "hedge"
    either: ClassVar[tuple[str, ...]] = ("delay", "quantile")
    delay: float | None = None
    quantile: float | None = None
    attempts: int = 2
    minimum: int = 20
    budget: RetryBudget | None = BUDGET

    def __post_init__(self) -> None:
        if self.delay is not None and self.quantile is not None:
            raise ConfigError(
                "hedge(quantile=…)", "is given beside a delay, and only one can hold", example="hedge(delay=0.05)"
            )
        if self.delay is None and self.quantile is None:
            object.__setattr__(self, "quantile", 0.95)
        if self.delay is not None:
            _check("delay=0.05", self.delay, (int, float), 0.0, 3600.0)
        else:
            _check("quantile=0.95", self.quantile, (int, float), 0.01, 0.9999)
        _check("attempts=2", self.attempts, int, 2, 10)
        _check("minimum=20", self.minimum, int, 1, SAMPLE)
        checked_budget("hedge", self.budget)

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        return _Hedge(self, site)


def _check(example: str, value: Any, types: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, types) or not least <= value <= most:
        option = example.partition("=")[0]
        raise ConfigError(f"hedge({option}=…)", f"{value!r:.40} is not a number from {least} to {most}", example=example)


class Latencies:
    """What the last :data:`SAMPLE` calls took, and a quantile of it, taken anew every :data:`RENEWED` calls. Threads that
    write at once may lose a latency; nothing depends on one."""

    def __init__(self, quantile: float, minimum: int) -> None:
        self._quantile, self._minimum = quantile, minimum
        self._ring: list[float] = []
        self._count = 0
        self.value: float | None = None
        """Seconds, None as long as there are too few."""

    def add(self, seconds: float) -> None:
        """A call took ``seconds``."""
        place = self._count % SAMPLE
        if place < len(self._ring):
            self._ring[place] = seconds
        else:
            self._ring.append(seconds)
        self._count += 1
        if self._count >= self._minimum and (self.value is None or self._count % RENEWED == 0):
            ordered = sorted(self._ring)
            self.value = ordered[min(len(ordered) - 1, math.ceil(self._quantile * len(ordered)) - 1)]


class _Hedge:
    """The layer."""

    def __init__(self, rule: hedge, site: Site) -> None:
        self.rule, self.site, self.clock = rule, site, site.clock
        self.spending = spending(rule.budget, site)
        self.latencies = None if rule.quantile is None else Latencies(rule.quantile, rule.minimum)

    @property
    def delay(self) -> float | None:
        """Seconds after which the next attempt begins; None as long as nobody knows."""
        return self.rule.delay if self.latencies is None else self.latencies.value

    def __call__(self, call: Call, proceed: Next) -> Flow:
        if call.visited is None:  # else the retry above has counted it
            self.spending.called(self.clock())
        if call.method != FUNCTION and not call.idempotent:
            return (yield from proceed(call))
        heat = _Heat(self, call, proceed)
        delay = self.delay
        if delay is None:
            return (yield from heat.attempt(call))
        try:
            try:
                return (yield Race(heat.attempt, heat.calls(), delay))
            except NoInstances:
                if heat.failure is None:
                    raise
            raise heat.failure  # how the others failed, not that nobody was left
        finally:
            heat.failure = None  # its traceback leads here: no cycle


class _Heat:
    """One call and its rivals."""

    def __init__(self, layer: _Hedge, call: Call, proceed: Next) -> None:
        self._layer, self._call, self._proceed = layer, call, proceed
        self._visited: list[Endpoint] = [] if call.visited is None else call.visited
        self._before = len(self._visited)
        self._first = call
        self._won = self._over = False
        self.failure: AttemptError | None = None

    def calls(self) -> Iterator[Call]:
        """The first attempt, and each further one when the race asks for it."""
        self._first = self._call.apart(self._visited)
        yield self._first
        for number in range(2, self._layer.rule.attempts + 1):
            if not self._may_go_on():
                return
            self._layer.site.emit("hedge.begun", attempt=number)
            yield self._rival()

    def _may_go_on(self) -> bool:
        deadline = self._call.deadline
        if self._over or (deadline is not None and self._layer.clock() >= deadline):
            return False
        if self._layer.spending.take():
            return True
        self._layer.site.emit("hedge.refused", why="the retry budget is used up")
        return False

    def _rival(self) -> Call:
        rival = self._call.apart(self._visited)
        others = self._visited[self._before :]
        if others:
            rival.tried, rival.last_resorts = (*self._call.tried, *others), _NO_LAST_RESORT
        return rival

    def attempt(self, call: Call) -> Flow:
        """The flow of one attempt. What the first took is observed also when it was cancelled for a rival that won: it would
        have taken longer, and a sample without the slow ones would make the delay shorter and shorter."""
        begun = self._layer.clock()
        try:
            response = yield from self._proceed(call)
        except AttemptError as failure:
            self.failure = None if self._won else failure
            raise
        except BaseException:
            if self._won:
                self._observe(call, begun)
            self._over = True  # refused by ourselves, or a bug: another attempt would not help
            raise
        if call is not self._first and not self._won:
            self._layer.site.emit("hedge.won")
        self._won = True
        self._observe(call, begun)
        return response

    def _observe(self, call: Call, begun: float) -> None:
        if self._layer.latencies is not None and call is self._first:
            self._layer.latencies.add(self._layer.clock() - begun)
