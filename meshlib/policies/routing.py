"""The layer of :class:`~meshlib.policies.routes.route`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Final, TypeAlias

from meshlib.errors import AttemptError, NoInstances
from meshlib.flow import Aside, Call, Flow, Next
from meshlib.keys import Key, not_bytes
from meshlib.model import ServiceUrl
from meshlib.policies.base import Site
from meshlib.policies.routes import Mirror, Rule, route
from meshlib.subsets import Subset

SHADOW: Final = (b"X-Mesh-Shadow", b"1")
"""The header of a copy: whoever gets it knows that nobody waits for the answer."""

Choose: TypeAlias = Callable[[Call], Subset | None]
Shares: TypeAlias = tuple[tuple[Subset, float], ...]


@dataclass(frozen=True)
class Routed:
    """Where a call would go: ``rule`` says by which rule, ``shares`` to which subsets with which share of 1 (None for anybody),
    ``besides`` what else is done."""

    rule: str
    shares: tuple[tuple[Subset | None, float], ...] = ((None, 1.0),)
    besides: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = [f"{subset or 'any instance'}{f' ({share:.3%})' if share < 1 else ''}" for subset, share in self.shares]
        return "; ".join((f"{self.rule} → {' or '.join(shown)}", *self.besides))


class Routing:
    """Puts the subset on the call; the balancer heeds it."""

    def __init__(self, policy: route, site: Site) -> None:
        self._rules = [_Bound(number, rule, policy, site) for number, rule in enumerate(policy.rules)]

    def __call__(self, call: Call, proceed: Next) -> Flow:
        for rule in self._rules:
            if rule.applies(call):
                return rule.perform(call, proceed)
        return proceed(call)

    def explain(self, call: Call) -> Routed:
        """Where ``call`` would go."""
        for rule in self._rules:
            if rule.applies(call):
                return rule.explain(call)
        return Routed("no rule matches")


class _Bound:
    """One rule at its site."""

    def __init__(self, number: int, rule: Rule, policy: route, site: Site) -> None:
        self.applies = rule.when.bind(site.caller)
        self._number, self._rule, self._site = number, rule, site
        self._only = policy.subset(rule.to)
        self._split = _Split(_resolved(rule, policy), rule.key_of(), site) if rule.split else None
        self._failover = [_Elsewhere(name, site) for name in rule.failover]
        self._mirror = _Copies(rule.mirror, policy, site) if rule.mirror else None
        self.perform: Callable[[Call, Next], Flow] = self._all if self._mirror or self._failover else self._plain

    def _subset(self, call: Call) -> Subset | None:
        return self._only if self._split is None else self._split(call)

    def _plain(self, call: Call, proceed: Next) -> Flow:
        return proceed(_to(call, self._subset(call)))

    def _all(self, call: Call, proceed: Next) -> Flow:
        if self._mirror is not None:
            yield from self._mirror.send(call, proceed)
        subset = self._subset(call)
        if not self._failover:
            return (yield from proceed(_to(call, subset)))
        return (yield from self._failing_over(call, subset, proceed))

    def _failing_over(self, call: Call, subset: Subset | None, proceed: Next) -> Flow:
        """First those here that are reachable, then the other services; with nobody there either, whoever is left here."""
        failures: list[NoInstances | AttemptError] = []
        try:
            try:
                return (yield from proceed(_to(call, _reachable(subset or _ANYBODY))))
            except (NoInstances, AttemptError) as problem:
                failures.append(_unsent(problem))
            for other in self._failover:
                self._site.emit("route.failover", to=str(other.target), why=str(failures[-1]))
                try:
                    return (yield from other.proceed(_at(call, other.target)))
                except (NoInstances, AttemptError) as problem:
                    failures.append(_unsent(problem))
            if isinstance(failures[0], NoInstances):
                return (yield from proceed(_to(call, subset)))
            raise failures[0]
        finally:
            failures.clear()  # their tracebacks lead here: no cycle

    def explain(self, call: Call) -> Routed:
        """What it would do with ``call``, changing nothing."""
        besides = [f"a copy of {self._rule.mirror.percent:g}% to {self._mirror}"] if self._mirror and self._rule.mirror else []
        besides += [f"with nobody reachable, the service {other.target}" for other in self._failover]
        name = f" {self._rule.name!r}" if self._rule.name else ""
        shares = ((self._only, 1.0),) if self._split is None else self._split.explain(call)
        return Routed(f"rule {self._number}{name} ({self._rule.when})", shares, tuple(besides))


class _Split:
    """Chooses one of several subsets, by lot or by key."""

    def __init__(self, shares: Shares, key: Key | None, site: Site) -> None:
        self._subsets = [subset for subset, share in shares if share]
        *self._ends, self._total = accumulate(share for _, share in shares if share)
        self._key, self._uniform = key, site.uniform
        # Another hash for every service, and another than that of pickers: a split would leave them similar keys only.
        self._salt = blake2b(site.service.encode(), digest_size=16).digest()

    def __call__(self, call: Call) -> Subset:
        point = self._point(call)
        return self._at(self._uniform() if point is None else point)

    def _at(self, point: float) -> Subset:
        return self._subsets[bisect_right(self._ends, point * self._total)]

    def _point(self, call: Call) -> float | None:
        """From 0 to 1, the same for the same key; None without a key."""
        value = None if self._key is None else self._key(call)
        if value is None:
            return None
        try:
            return (int.from_bytes(blake2b(value, digest_size=8, salt=self._salt).digest(), "big") >> 11) * 2.0**-53
        except TypeError:
            raise not_bytes(value) from None

    def explain(self, call: Call) -> tuple[tuple[Subset | None, float], ...]:
        point = self._point(call)
        if point is not None:
            return ((self._at(point), 1.0),)
        sizes = [end - start for start, end in zip((0.0, *self._ends), (*self._ends, self._total), strict=True)]
        return tuple((subset, size / self._total) for subset, size in zip(self._subsets, sizes, strict=True))


class _Elsewhere:
    """Another service, looked up when the rule is bound, so that it is known in time."""

    def __init__(self, name: str, site: Site) -> None:
        self.target, self.proceed = site.reach(name)


class _Copies:
    """Sends copies of calls aside."""

    def __init__(self, mirror: Mirror, policy: route, site: Site) -> None:
        self._site, self._share = site, mirror.percent / 100.0
        self._elsewhere = _Elsewhere(mirror.service, site) if mirror.service else None
        self._subset = _strictly(policy.subset(mirror.to))

    def __str__(self) -> str:
        return f"{self._subset or 'any instance'}{f' of {self._elsewhere.target}' if self._elsewhere else ''}"

    def send(self, call: Call, proceed: Next) -> Flow:
        """Send one, if this call is to have one."""
        if call.visited or not call.replayable:  # a repeated call had its copy
            return
        if self._share < 1.0 and self._site.uniform() >= self._share:
            return
        copy = call.__copy__()
        copy.headers, copy.subset, copy.closers = [*call.headers, SHADOW], self._subset, None
        copy.visited = copy.again = None
        if self._elsewhere is not None:
            copy, proceed = _at(copy, self._elsewhere.target, self._subset), self._elsewhere.proceed
        if not (yield Aside(proceed, copy)):
            self._site.emit("route.mirror_dropped")


def _resolved(rule: Any, policy: route) -> Shares:
    return tuple((policy.subset(place), share) for place, share in rule.split)  # type: ignore[misc]


def _to(call: Call, subset: Subset | None) -> Call:
    if subset is None:
        return call
    routed = call.alike()
    routed.subset = subset
    return routed


def _at(call: Call, target: ServiceUrl, subset: Subset | None = None) -> Call:
    """``call`` to another service, where nobody has been tried."""
    other = call.alike()
    other.target, other.subset, other.tried, other.last_resorts = target, subset, (), 0
    return other


def _unsent(problem: NoInstances | AttemptError) -> NoInstances | AttemptError:
    """``problem`` when nothing was sent, else it is raised: the work may have been done."""
    if isinstance(problem, AttemptError) and not problem.unsent:
        raise problem
    return problem


_ANYBODY: Final = Subset()


@lru_cache(maxsize=256)
def _reachable(subset: Subset) -> Subset:
    return replace(subset, reachable=True)


def _strictly(subset: Subset | None) -> Subset | None:
    """The same, and nobody else."""
    if subset is None:
        return None
    return replace(subset, strict=True, otherwise=_strictly(subset.otherwise))
