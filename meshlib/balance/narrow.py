"""From what is known of a service to the instances that one call may go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.rendezvous import first
from meshlib.balance.tiers import NOWHERE, Here, Pool, Tiers
from meshlib.subsets import Subset

LAST_RESORTS: Final = 3
"""A call that has failed at so many ejected endpoints goes to no further one: with all of a large fleet dead it would try for
ever."""


def eligible(
    tiers: Tiers,
    subset: Subset | None = None,
    *,
    here: Here = NOWHERE,
    tried: Sequence[Endpoint] = (),
    visited: Sequence[Endpoint] = (),
    last_resorts: int = 0,
) -> Pool | None:
    """What a call for ``subset`` is chosen from: of the highest tier that has somebody untried, those of the subset, or of the
    next best, or all; who was ``visited`` only if nobody else of the tier will do. None when nobody may be chosen."""
    for tier in (tiers.prime, tiers.reserve, tiers.outliers, _last(tiers, subset, last_resorts)):
        left = tuple(endpoint for endpoint in tier if endpoint not in tried) if tried else tier
        fresh = tuple(endpoint for endpoint in left if endpoint not in visited) if visited else ()
        pool = among(fresh, tiers, subset, here) or among(left, tiers, subset, here)
        if pool is not None:
            return pool
    return None


def usable(tiers: Tiers, subset: Subset | None) -> tuple[Endpoint, ...]:
    """The highest tier that has anybody, the last one only if a call for ``subset`` may go there."""
    return tiers.prime or tiers.reserve or tiers.outliers or _last(tiers, subset, 0)


def among(endpoints: tuple[Endpoint, ...], tiers: Tiers, subset: Subset | None, here: Here) -> Pool | None:
    """The pool of those of ``endpoints`` that a call for ``subset`` may go to; None when there are none."""
    if not endpoints:
        return None
    pool = Pool(endpoints, tiers.members, tiers.memo, here)
    return pool if subset is None else narrowed(pool, subset)


def _last(tiers: Tiers, subset: Subset | None, last_resorts: int) -> tuple[Endpoint, ...]:
    spared = last_resorts >= LAST_RESORTS or (subset is not None and subset.reachable)
    return () if spared else tiers.ejected


def narrowed(pool: Pool, subset: Subset) -> Pool | None:
    """The part of ``pool`` that is of ``subset``, or of the next best; the whole pool where there is none, and None where the
    last of them is strict."""
    while True:
        part = _part(pool, subset)
        if part is not None:
            return part
        if subset.otherwise is None:
            return None if subset.strict else pool
        subset = subset.otherwise


def _part(pool: Pool, subset: Subset) -> Pool | None:
    anybody = not (subset.labels or subset.version or subset.zone)
    part = pool if anybody else pool.part(("subset", subset), _matching(pool, subset).__contains__)
    if part is None or not 0 < subset.instances < len(part.endpoints):
        return part
    chosen = set(first(part, "", subset.instances))  # no name: every process means the same ones
    return part.part(("first", subset.instances), chosen.__contains__)


def _matching(pool: Pool, subset: Subset) -> frozenset[Endpoint]:
    """Who matches ``subset``, healthy or not: asked once per membership, for ejections happen in the threads of calls."""
    key = ("matching", subset.labels, subset.version, subset.zone)
    known: frozenset[Endpoint] | None = pool.memo.get(key)
    if known is None:
        members = pool.members or pool.endpoints
        known = pool.memo[key] = frozenset(one for one in members if subset.mismatch(one.instance) is None)
    return known
