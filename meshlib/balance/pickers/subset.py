"""A few of many: each consumer of a large service calls a part of it, and holds connections to that part alone."""

from __future__ import annotations

from hashlib import blake2b

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers.around import Around
from meshlib.balance.pickers.base import Choose, Picker
from meshlib.balance.pickers.quality import PeakEwma
from meshlib.balance.tiers import Pool
from meshlib.errors import ConfigError


class Subset(Around):
    """``inner`` over ``size`` instances, chosen by rendezvous (Thaler and Ravishankar 1998): consumer and instance together
    make a number, and those of the highest numbers are its. So consumers have different ones, each instance has about as many
    consumers as any other, a consumer keeps its own when it restarts, and one that leaves changes one place. For one that is
    out the next in rank comes in. A service of up to ``size`` instances is left whole. Raises :class:`ConfigError`."""

    def __init__(self, *, size: int = 100, inner: Picker | None = None) -> None:
        super().__init__(PeakEwma() if inner is None else inner)
        if type(size) is not int or size < 1:
            raise ConfigError("Subset(size=)", f"{size!r:.20} is not a number of instances", example="size=100")
        self._size = size

    def __call__(self, pool: Pool) -> Choose:
        if len(pool.endpoints) <= self._size:
            return self.inner(pool)
        part = pool.part((self, "subset"), set(self._chosen(pool)).__contains__)
        assert part is not None  # some of the usable ones are always chosen
        return self.inner(part)

    def _chosen(self, pool: Pool) -> tuple[Endpoint, ...]:
        """The first by rank, until enough of them are usable."""
        usable, found = set(pool.endpoints), 0
        ranking = self._ranking(pool)
        for number, endpoint in enumerate(ranking, 1):
            found += endpoint in usable
            if found == self._size:
                return ranking[:number]
        return ranking

    def _ranking(self, pool: Pool) -> tuple[Endpoint, ...]:
        consumer = pool.here.consumer
        ranking: tuple[Endpoint, ...] | None = pool.memo.get((self, "ranking", consumer))
        if ranking is None:
            members = pool.members or pool.endpoints
            ranking = tuple(sorted(members, key=lambda one: _score(consumer, one), reverse=True))
            pool.memo[self, "ranking", consumer] = ranking
        return ranking


def _score(consumer: str, endpoint: Endpoint) -> bytes:
    return blake2b(f"{consumer}\0{endpoint.instance.id}".encode(), digest_size=8).digest()
