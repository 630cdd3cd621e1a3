"""A few of many: each consumer of a large service calls a part of it, and holds connections to that part alone."""

from __future__ import annotations

from meshlib.balance.pickers.around import Around
from meshlib.balance.pickers.base import Choose, Picker
from meshlib.balance.pickers.quality import PeakEwma
from meshlib.balance.rendezvous import first
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
        chosen = set(first(pool, pool.here.consumer, self._size))
        part = pool.part((self, "subset"), chosen.__contains__)
        assert part is not None  # some of the usable ones are always chosen
        return self.inner(part)
