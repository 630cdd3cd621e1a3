"""Whom to leave out when there is more to do than can be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from meshlib import priorities
from meshlib.errors import ConfigError, Overloaded
from meshlib.fields import built
from meshlib.flow import Call, Flow, Layer, Next
from meshlib.keys import header
from meshlib.policies.adaptive import adaptive_concurrency, held, refusal, said
from meshlib.policies.base import Policy, Site
from meshlib.policies.forks import on_fork

_said: Final = header(priorities.HEADER)


@dataclass(frozen=True, kw_only=True)
class shed(Policy):  # noqa: N801 - as users write it
    """An :class:`adaptive_concurrency` limit for providers, whose places go to the important first: ``critical`` requests may
    fill it, ``normal`` ones up to that share of it, ``sheddable`` ones up to theirs. What a request is, it says in the header
    ``X-Mesh-Priority`` (or ``priority``, a function of the call, says so); ``normal`` where nobody does.

    A request whose deadline would pass before it is done (``hopeless``) is not begun: what it waits for others, by what latency
    says, and the shortest time that any takes are more than it has left. While nothing is under way every request is begun.

    Whoever is refused gets :class:`~meshlib.errors.Overloaded`. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "shed"
    refuses: ClassVar[bool] = True

    concurrency: adaptive_concurrency = field(default_factory=adaptive_concurrency)
    normal: float = 0.9
    sheddable: float = 0.6
    hopeless: bool = True
    priority: Callable[[Call], str] | None = None

    def __post_init__(self) -> None:
        limit = built(adaptive_concurrency, self.concurrency, "shed(concurrency=)", example="adaptive_concurrency(most=50)")
        object.__setattr__(self, "concurrency", limit)  # a document has its fields
        for name in ("normal", "sheddable"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1):
                raise _wrong(name, f"{value!r:.40} is not a share from 0 to 1", f"{name}=0.6")
        if self.sheddable > self.normal:
            raise _wrong("sheddable", f"{self.sheddable:g} is more than normal={self.normal:g}", "sheddable=0.6")
        if self.priority is not None and not callable(self.priority):
            raise _wrong("priority", f"{self.priority!r:.40} is not a function of a call", 'priority=lambda call: "normal"')

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        return Shed(self, site)


def _wrong(option: str, problem: str, example: str) -> ConfigError:
    return ConfigError(f"shed({option}=)", problem, example=example)


class Shed:
    """The layer."""

    def __init__(self, policy: shed, site: Site) -> None:
        self._policy, self._site = policy, site
        self._shares = {priorities.CRITICAL: 1.0, priorities.NORMAL: policy.normal, priorities.SHEDDABLE: policy.sheddable}
        self.limiter = policy.concurrency.limiter(site)
        on_fork(self.limiter)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        limiter, level = self.limiter, self._level(call)
        lag = limiter.lag()
        if call.deadline is not None and self._policy.hopeless:
            needs, left = limiter.needs(lag), call.deadline - self._site.clock()
            if left < needs:
                raise self._refused(call, level, f"this one has {left:.3g} s left and would take {needs:.3g} s")
        permit = limiter.take(lag, self._shares[level])
        if permit is None:
            good = limiter.gradient.limit * self._shares[level]
            raise self._refused(call, level, f"no more than {good:.1f} at once are good for {level} ones")
        return (yield from held(call, proceed, limiter, permit))

    def _level(self, call: Call) -> str:
        if self._policy.priority is not None:
            level = self._policy.priority(call)
        else:
            raw = _said(call)
            level = priorities.inherited() if raw is None else priorities.level_of(raw.decode("latin-1"))
        return level if level in self._shares else priorities.NORMAL

    def _refused(self, call: Call, level: str, why: str) -> Overloaded:
        self._site.emit("shed.refused", priority=level, limit=self.limiter.gradient.limit, under_way=len(self.limiter))
        return refusal(call, self._site, self.limiter, why)

    def explain(self, call: Call) -> str:
        """How it stands, and what ``call`` is."""
        return f"{self._level(call)}; {said(self.limiter)}"
