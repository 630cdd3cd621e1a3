"""How much may be repeated: a share of the calls, so that whoever is in trouble is not finished off by its clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from meshlib.errors import ConfigError
from meshlib.policies.base import Site
from meshlib.threads import lock

WINDOW: Final = 10
"""Seconds over which calls and repetitions are compared, in steps of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Of what is called within ten seconds, the ``share`` may be repeated, and ``per_second`` (a whole number) of the calls of
    any second: the larger of the two, so never more than both together.

    It belongs to the service as one mesh calls it: all methods and clients of a process whose budgets are equal share one.
    """

    share: float = 0.2
    per_second: int = 10

    def __post_init__(self) -> None:
        if not _is(self.share, (int, float)) or not 0 <= self.share <= 1:
            raise ConfigError("RetryBudget(share=…)", f"{self.share!r} is not a share from 0 to 1", example="share=0.2")
        if not _is(self.per_second, int) or not 0 <= self.per_second <= 1_000_000:
            raise ConfigError(
                "RetryBudget(per_second=…)", f"{self.per_second!r} is not a whole number", example="per_second=10"
            )

    def at(self, site: Site) -> Spending:
        """What has been spent of it at ``site``."""
        return site.commons.get(("retry budget", site.service, self), lambda: Spending(self, site.clock))


def _is(value: Any, types: Any) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


BUDGET: Final = RetryBudget()
"""The default: 20 % or 10 a second."""


class Spending:
    """What has been called, and what repeated, in each of the last :data:`WINDOW` seconds. Safe for threads: only counting
    calls takes no lock, and a count that two threads make one of errs on the side of fewer repetitions."""

    def __init__(self, rule: RetryBudget, clock: Callable[[], float]) -> None:
        self._rule, self._clock = rule, clock
        self._second = int(clock())
        self._calls, self._repeats = [0] * WINDOW, [0] * WINDOW
        self._lock = lock()

    def called(self, now: float) -> None:
        """A call is made at monotonic time ``now``."""
        second = int(now)
        if second != self._second:
            with self._lock:
                self._turn(second)
        self._calls[second % WINDOW] += 1

    def take(self) -> bool:
        """Whether one attempt may be repeated now; if so, it counts."""
        now = int(self._clock())
        with self._lock:
            self._turn(now)
            repeated = sum(self._repeats) + 1
            if repeated > self._rule.share * sum(self._calls) and self._repeats[now % WINDOW] >= self._rule.per_second:
                return False
            self._repeats[now % WINDOW] += 1
            return True

    def left(self) -> int:
        """How many attempts may be repeated now."""
        now = int(self._clock())
        with self._lock:
            self._turn(now)
            by_share = int(self._rule.share * sum(self._calls)) - sum(self._repeats)
            return max(0, by_share, self._rule.per_second - self._repeats[now % WINDOW])

    def _turn(self, second: int) -> None:
        for passed in range(max(self._second + 1, second - WINDOW + 1), second + 1):
            self._calls[passed % WINDOW] = self._repeats[passed % WINDOW] = 0
        self._second = max(self._second, second)


class Unlimited:
    """In place of a budget where there is none."""

    def called(self, now: float) -> None:
        """Does nothing."""

    def take(self) -> bool:
        """Always."""
        return True

    def left(self) -> None:
        """There is no bound."""


def spending(budget: RetryBudget | None, site: Site) -> Spending | Unlimited:
    """What counts at ``site``."""
    return Unlimited() if budget is None else budget.at(site)


def checked_budget(policy: str, budget: Any) -> None:
    """Raise :class:`ConfigError` for what is no budget."""
    if budget is not None and not isinstance(budget, RetryBudget):
        raise ConfigError(f"{policy}(budget=…)", f"{budget!r:.60} is not a budget", example="budget=RetryBudget(share=0.1)")
