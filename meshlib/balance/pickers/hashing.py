"""Pickers by key: calls with the same key go to the same instance, in every process that sees the same instances."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import chain
from math import isfinite
from typing import Final, TypeVar
from zlib import crc32

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers.around import Around
from meshlib.balance.pickers.base import Choose, Picker
from meshlib.balance.pickers.plain import least_request
from meshlib.balance.pickers.ring import OWNER, STEP, Ring
from meshlib.balance.tiers import Pool
from meshlib.errors import ConfigError
from meshlib.flow import Call
from meshlib.keys import MASK, MIX, SHIFT, Key, checked, digest, not_bytes

T = TypeVar("T")

POINTS: Final = 160
SPARSE: Final = 64
"""When fewer than one of so many members is usable, the ring is made of the usable ones alone: the same places, without a
long walk to each."""
MAX_POINTS: Final = 10_000


class ModHash(Around):
    """The key modulo the number of instances: the cheapest, and even, but nearly all keys move when an instance joins or
    leaves. One that is out is stood in for by the next usable one in order of ids. Weights are not heeded. Calls without a
    key go to ``inner``."""

    def __init__(self, key: Key, *, inner: Picker = least_request) -> None:
        super().__init__(inner)
        self.key = checked(key, "ModHash")

    def __call__(self, pool: Pool) -> Choose:
        turn, key, keyless = _stand_ins(pool), self.key, self.inner(pool)
        size = len(turn)

        def choose(call: Call) -> Endpoint:
            value = key(call)
            return keyless(call) if value is None else turn[digest(value) % size]

        return choose


def _stand_ins(pool: Pool) -> list[Endpoint]:
    """For each member itself or the next one that is usable."""
    usable, turn = set(pool.endpoints), list(pool.members or pool.endpoints)
    following = next(one for one in turn if one in usable)
    for number in range(len(turn) - 1, -1, -1):
        if turn[number] in usable:
            following = turn[number]
        else:
            turn[number] = following
    return turn


class ConsistentHash(Around):
    """A ring (see :mod:`meshlib.balance.pickers.ring`): when one of N instances leaves, only its keys move, about 1/N of
    all.

    An instance of mean weight has ``points`` points, others by their weight, at least one; the more, the evener: with 160
    the standard deviation of shares is 8 %. One that is out is passed over clockwise, and has its keys back when
    it returns.

    ``load`` bounds what a key that everybody asks for can do to its instance: none is chosen that would have more attempts
    in flight then than ``load`` times its share of all that are (and at least 1); the call goes on clockwise (Mirrokni,
    Thorup, Zadimoghaddam 2016). None sets no bound. Calls without a key go to ``inner``. Raises :class:`ConfigError`.
    """

    def __init__(
        self,
        key: Key,
        *,
        points: int = POINTS,
        load: float | None = 1.25,
        inner: Picker = least_request,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self.key, self._points, self._load, self._clock = checked(key, "ConsistentHash"), points, load, clock
        if type(points) is not int or not 1 <= points <= MAX_POINTS:
            raise ConfigError("ConsistentHash(points=)", f"{points!r:.20} is not in 1..{MAX_POINTS}", example="points=160")
        if load is not None and not (isinstance(load, (int, float)) and load > 1 and isfinite(load)):
            raise ConfigError("ConsistentHash(load=)", f"{load!r:.20} is neither above 1 nor None", example="load=1.25")

    def __call__(self, pool: Pool) -> Choose:
        return self.chooser(pool, self.key, self.inner(pool))

    def chooser(
        self, pool: Pool, key: Callable[[T], bytes | None], keyless: Callable[[T], Endpoint]
    ) -> Callable[[T], Endpoint]:
        """The function that chooses among the usable ones of ``pool`` for whatever ``key`` makes a key of."""
        if len(pool.endpoints) == 1:
            sole = pool.endpoints[0]
            return lambda _call: sole
        listed, counts, ring = self._ring(pool)
        usable = set(pool.endpoints)
        slots = [one if one in usable else None for one in listed]
        bound = None
        if self._load is not None:
            shares = [count if slot is not None else 0 for slot, count in zip(slots, counts, strict=True)]
            bound = Bound(pool.endpoints, shares, self._load, self._clock)
        return _chooser(ring, slots, bound, key, keyless)

    def _ring(self, pool: Pool) -> tuple[Sequence[Endpoint], list[int], Ring]:
        members, size = pool.members or pool.endpoints, self._points
        mean = sum(one.instance.weight for one in members) / len(members) or 1.0
        if len(pool.endpoints) * SPARSE < len(members):
            counts = points_of(pool.endpoints, mean, size)
            return pool.endpoints, counts, Ring([one.instance.id for one in pool.endpoints], counts, size)
        kept = pool.memo.get((Ring, size))  # the same for all pickers that want so many points
        if kept is None:
            counts = points_of(members, mean, size)
            kept = pool.memo[Ring, size] = counts, Ring([one.instance.id for one in members], counts, size)
        counts, ring = kept
        return members, counts, ring


def points_of(endpoints: Sequence[Endpoint], mean: float, points: int) -> list[int]:
    """How many points each has on a ring where those of ``mean`` weight have ``points``."""
    return [max(1, round(points * one.instance.weight / mean)) for one in endpoints]


class Bound:
    """Whether an endpoint has as many attempts in flight as its share allows.

    It needs to know how many all have. Counting them takes 20 us for 1 000, so the count is good for 16 times as long as it
    took: a bound that costs at most a sixteenth of the time, and is never older than milliseconds.
    """

    def __init__(self, endpoints: Sequence[Endpoint], shares: Sequence[int], load: float, clock: Callable[[], float]) -> None:
        whole = sum(shares)
        self._endpoints, self._clock = endpoints, clock
        self._shares = [load * share / whole for share in shares]
        self._total, self._until = 0, float("-inf")

    def full(self, number: int, endpoint: Endpoint) -> bool:
        """True when ``endpoint``, the member of that ``number``, is to have no further attempt. Never so when it is idle."""
        now = self._clock()
        if now >= self._until:
            self.count(now)
        # One below the ceiling of a number is one below the number: whole numbers need no ceil().
        return len(endpoint.in_flight) >= self._shares[number] * (self._total + 1)

    def count(self, now: float) -> None:
        """Count anew. Two threads at once do it twice."""
        self._total = sum([len(one.in_flight) for one in self._endpoints])
        after = self._clock()
        self._until = after + 16 * (after - now)

    def recount(self) -> None:
        """Count anew, however young the count is."""
        self.count(self._clock())


PATIENCE: Final = 64
"""Points passed by for being full, until the count is doubted: by it everybody may be, when it is older than new attempts."""


def _chooser(
    ring: Ring,
    slots: list[Endpoint | None],
    bound: Bound | None,
    key: Callable[[T], bytes | None],
    keyless: Callable[[T], Endpoint],
) -> Callable[[T], Endpoint]:
    points, owners, edges, shift = ring.points, ring.owners, ring.edges, ring.shift
    full = _never if bound is None else bound.full

    def choose(call: T) -> Endpoint:
        value = key(call)
        if value is None:
            return keyless(call)
        try:
            place = crc32(value) * MIX >> SHIFT & MASK  # digest(value), without the call that would be a tenth of a pick
        except TypeError:
            raise not_bytes(value) from None
        cell = place >> shift
        index = bisect_left(points, 1.0 + place * STEP, edges[cell], edges[cell + 1])
        number = owners[index] & OWNER
        endpoint = slots[number]
        if endpoint is not None and (not endpoint.in_flight or not full(number, endpoint)):
            return endpoint
        return _clockwise(owners, index, slots, bound)

    return choose


def _clockwise(owners: memoryview, index: int, slots: list[Endpoint | None], bound: Bound | None) -> Endpoint:
    """The first that is usable and not full, clockwise of the point ``index``, that itself last."""
    first: Endpoint | None = None
    passed = 0
    for word in chain(owners[index + 1 :], owners[: index + 1]):
        number = word & OWNER
        endpoint = slots[number]
        if endpoint is None:
            continue
        if bound is None or not endpoint.in_flight or not bound.full(number, endpoint):
            return endpoint
        first, passed = first or endpoint, passed + 1
        if passed == PATIENCE:
            bound.recount()
    assert first is not None  # somebody is usable
    return first  # other threads were faster everywhere: then as if there were no bound


def _never(_number: int, _endpoint: Endpoint) -> bool:
    return False
