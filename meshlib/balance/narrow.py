"""From the pool of a service to the part of it that a rule names."""

from __future__ import annotations

from meshlib.balance.rendezvous import first
from meshlib.balance.tiers import Pool
from meshlib.subsets import Subset


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
    part = pool if anybody else pool.part(("subset", subset), lambda one: subset.mismatch(one.instance) is None)
    if part is None or not 0 < subset.instances < len(part.endpoints):
        return part
    chosen = set(first(part, "", subset.instances))  # no name: every process means the same ones
    return part.part(("first", subset.instances), chosen.__contains__)
