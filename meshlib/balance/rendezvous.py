"""Some of many, chosen by rendezvous (Thaler and Ravishankar 1998): whoever agrees on a name, chooses the same."""

from __future__ import annotations

from hashlib import blake2b

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.tiers import Pool


def first(pool: Pool, name: str, size: int) -> tuple[Endpoint, ...]:
    """The first members of ``pool`` by rank for ``name``, as many as hold ``size`` usable ones."""
    usable, found = set(pool.endpoints), 0
    ranked = ranking(pool, name)
    for number, endpoint in enumerate(ranked, 1):
        found += endpoint in usable
        if found == size:
            return ranked[:number]
    return ranked


def ranking(pool: Pool, name: str) -> tuple[Endpoint, ...]:
    """All members, those with the highest scores for ``name`` first; made once per membership."""
    known: tuple[Endpoint, ...] | None = pool.memo.get(("ranking", name))
    if known is None:
        members = pool.members or pool.endpoints
        known = tuple(sorted(members, key=lambda one: _score(name, one), reverse=True))
        pool.memo["ranking", name] = known
    return known


def _score(name: str, endpoint: Endpoint) -> bytes:
    return blake2b(f"{name}\0{endpoint.instance.id}".encode(), digest_size=8).digest()
