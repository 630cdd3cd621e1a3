"""Why a call may go to one instance and not to another, for people to read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.fleet import Fleet
from meshlib.balance.narrow import eligible
from meshlib.balance.tiers import Tiers
from meshlib.flow import Call
from meshlib.model import Instance, Snapshot, Status
from meshlib.subsets import Subset

SHOWN: Final = 50
"""Candidates that a text shows; a structure has them all."""

TIERS: Final = ("prime", "reserve", "outliers", "ejected")


@dataclass(frozen=True)
class Candidate:
    """One instance. ``tier`` is where its health puts it (``"prime"``, ``"reserve"``, ``"outliers"``, ``"ejected"``, or empty
    for maintenance); ``dropped`` says why the call does not go there, empty when it may. ``latency`` is the moving average in
    seconds and ``score`` what the picker compares (lower is better), both None where nothing was measured; ``in_flight`` the
    attempts under way, ``failures`` those since the last good answer."""

    instance: Instance
    tier: str
    dropped: tuple[str, ...]
    latency: float | None
    score: float | None
    in_flight: int
    failures: int

    @property
    def eligible(self) -> bool:
        """True when the call may go there."""
        return not self.dropped

    def __str__(self) -> str:
        verdict = "may be chosen" if self.eligible else f"not: {'; '.join(self.dropped)}"
        latency = "unmeasured" if self.latency is None else f"{self.latency * 1000:.3g} ms"
        numbers = f"{latency}, {self.in_flight} in flight, weight {self.instance.weight}"
        return f"{self.instance.id} at {self.instance.netloc} ({self.tier or 'maintenance'}; {numbers}): {verdict}"


def candidates(fleet: Fleet, call: Call, tiers: Tiers | None = None) -> tuple[Candidate, ...]:
    """Every listed instance, and whether ``call`` may go there, by the ``tiers`` of the fleet (default: as they are)."""
    tiers = tiers or fleet.tiers
    pool = eligible(tiers, call.subset, tried=call.tried, last_resorts=call.last_resorts)
    chosen = set() if pool is None else set(pool.endpoints)
    if call.target.instance:
        chosen = {one for one in fleet.endpoints() if one.instance.id == call.target.instance} - set(call.tried)
    place = {one: name for name in TIERS for one in getattr(tiers, name)}
    best = min((TIERS.index(place[one]) for one in chosen if one in place), default=len(TIERS))
    return tuple(
        _candidate(one, place.get(one, ""), () if one in chosen else tuple(_reasons(one, call, place.get(one, ""), best)))
        for one in fleet.endpoints()
    )


def _candidate(endpoint: Endpoint, tier: str, dropped: tuple[str, ...]) -> Candidate:
    measured = not math.isnan(endpoint.cost)
    return Candidate(
        endpoint.instance, tier, dropped, endpoint.latency if measured else None, endpoint.cost if measured else None,
        len(endpoint.in_flight), endpoint.failures,
    )  # fmt: skip


def _reasons(endpoint: Endpoint, call: Call, tier: str, best: int) -> Iterable[str]:
    """Why ``endpoint`` is not chosen, while the best that are stand in the tier of number ``best``."""
    if call.target.instance:
        yield "another one is named" if endpoint.instance.id != call.target.instance else "tried already"
        return
    if not tier:
        yield "in maintenance" if endpoint.instance.status is Status.MAINTENANCE else "no longer listed"
    elif TIERS.index(tier) > best or tier == "ejected":
        yield _health(endpoint, tier)
    if endpoint in call.tried:
        yield "tried already"
    if call.subset is not None:
        yield _outside(endpoint, call.subset)


def _health(endpoint: Endpoint, tier: str) -> str:
    ejection, instance = endpoint.ejected, endpoint.instance
    if ejection is not None:
        until = f"for {ejection.seconds:.3g} s" if ejection.seconds else "until a probe succeeds"
        return f"{ejection.reason.value}, out {until}"
    if tier == "reserve":
        idle = "a suspect: unlisted" if instance.weight else "of weight 0"
        why = "draining" if instance.status is Status.DRAINING else idle
        return f"{why}, used when nobody better is there"
    return f"in the tier {tier}, used when nobody better is there"


def _outside(endpoint: Endpoint, subset: Subset) -> str:
    mismatch = subset.mismatch(endpoint.instance)
    return mismatch or f"not among those chosen of {subset}"


@dataclass(frozen=True)
class Seen:
    """How a call found a fleet at the time: kept with its error, and read when somebody asks."""

    fleet: Fleet
    tiers: Tiers
    snapshot: Snapshot | None
    call: Call

    def candidates(self) -> tuple[Candidate, ...]:
        """Every instance; health and tiers are those of the time, measurements those of now."""
        return candidates(self.fleet, self.call, self.tiers)

    def __str__(self) -> str:
        subset = f"wanted: {self.call.subset}\n" if self.call.subset else ""
        return f"{subset}instances, {known(self.snapshot)}:\n{listing(self.candidates())}"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """In another process there is no fleet: its text goes there."""
        return str, (str(self),)


def known(snapshot: Snapshot | None) -> str:
    """Of when, and from where, a list of instances is."""
    if snapshot is None:
        return "of which nothing is known"
    revision = f", revision {snapshot.revision}" if snapshot.revision else ""
    return f"as of {snapshot.age(time.time()):.1f} s ago from {'the ' + snapshot.source}{revision}"


def listing(found: tuple[Candidate, ...]) -> str:
    """``found`` as lines, those first that may be chosen."""
    lines = [f"  {one}" for one in sorted(found, key=lambda one: (not one.eligible, one.instance.id))]
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *more]) or "  none"
