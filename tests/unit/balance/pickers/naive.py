"""A ring as one would draw it: a sorted list of places, walked from the start. Slow, and written without a look at the fast
one but for what a point is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import shake_128

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.tiers import Pool
from meshlib.flow import Call
from tests.unit.flows import call_to

CIRCLE = 1 << 30


def points_of(name: str, count: int, stretches: int) -> list[int]:
    bits = shake_128(name.encode()).digest(8 * (count + 1))
    numbers = [int.from_bytes(bits[at : at + 8], "little") for at in range(0, len(bits), 8)]
    start, width = numbers[0] % stretches, CIRCLE // stretches
    return [(start + number) % stretches * width + ((lot & 0xFFFFFFFF) * width >> 32) for number, lot in enumerate(numbers[1:])]


class NaiveRing:
    def __init__(self, pool: Pool, size: int) -> None:
        mean = sum(one.instance.weight for one in pool.members) / len(pool.members) or 1.0
        self.counts = {one: max(1, round(size * one.instance.weight / mean)) for one in pool.members}
        self.usable = pool.endpoints
        self.points = sorted(
            (place, number, one)
            for number, one in enumerate(pool.members)
            for place in points_of(one.instance.id, self.counts[one], size)
        )

    def owner(self, place: int, fits: Callable[[Endpoint], bool] = lambda _one: True) -> Endpoint:
        clockwise = [p for p in self.points if p[0] >= place] + [p for p in self.points if p[0] < place]
        return next(one for _, _, one in clockwise if one in self.usable and fits(one))

    def room(self, load: float) -> dict[Endpoint, int]:
        """How many attempts each may have in flight when one more begins."""
        total = sum(len(one.in_flight) for one in self.usable) + 1
        whole = sum(self.counts[one] for one in self.usable)
        return {one: math.ceil(load * total * self.counts[one] / whole - 1e-9) for one in self.usable}


def by_path(call: Call) -> bytes:
    return call.path


def calls(keys: Iterable[str]) -> list[Call]:
    return [call_to(key.encode()) for key in keys]


def chi_square(seen: Sequence[float], expected: Sequence[float]) -> float:
    """In standard deviations from what chance would give."""
    value = sum((one - want) ** 2 / want for one, want in zip(seen, expected, strict=True))
    free = len(seen) - 1
    return (value - free) / math.sqrt(2 * free)
