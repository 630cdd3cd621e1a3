"""Pickers that learn nothing from calls: in turn, at random, by weight, by who is least busy."""

from __future__ import annotations

import itertools
import random as chance
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers.base import Choose
from meshlib.balance.tiers import Pool
from meshlib.flow import Call

GOLDEN: Final = (5**0.5 - 1) / 2

RIVALS: Final = 1024
"""Pairs that are dealt before they repeat, at least four for each endpoint: more for small fleets, where it counts."""


def round_robin(pool: Pool) -> Choose:
    """Each in turn, starting anywhere, so that many consumers do not march in step."""
    endpoints, size = pool.endpoints, len(pool.endpoints)
    turns = itertools.count(chance.randrange(size))  # next() of a count is atomic: no lock
    return lambda _call: endpoints[next(turns) % size]


def random(pool: Pool) -> Choose:
    """Anyone, each with the same chance."""
    endpoints, size, uniform = pool.endpoints, len(pool.endpoints), chance.random
    return lambda _call: endpoints[int(uniform() * size)]


def weighted(pool: Pool) -> Choose:
    """Each as often as its weight says, and smoothly: one of weight 3 beside two of weight 1 is picked every other time or so,
    never three times in a row.

    Weights are lengths on a line, and turn ``k`` falls on the fractional part of ``k`` times the golden ratio: of all
    sequences the one that covers every stretch of the line most evenly (Knuth, The Art of Computer Programming 3, 6.4).
    """
    endpoints = pool.endpoints
    ends = list(itertools.accumulate(float(endpoint.instance.weight) for endpoint in endpoints))
    if not ends[-1]:
        return round_robin(pool)  # all of them wish for nothing, and somebody has to
    total, size = ends.pop(), len(endpoints)
    step, scale = GOLDEN * total, size / total
    # Where to begin to look, for each of as many stretches as there are endpoints (a guide table, Chen and Asau 1974): the
    # search is over one or two then, instead of over all.
    guide = [bisect_right(ends, part / scale) for part in range(size + 2)]
    turns = itertools.count(chance.randrange(1 << 20))

    def choose(_call: Call) -> Endpoint:
        place = next(turns) * step % total
        part = int(place * scale)
        return endpoints[bisect_right(ends, place, guide[part], guide[part + 1])]

    return choose


def least_request(pool: Pool) -> Choose:
    """The less busy of two ("the power of two choices", Mitzenmacher 1996), by its weight: close to the least busy of all,
    without the herd that follows it."""
    if len(pool.endpoints) == 1:
        return only(pool)
    draw = pairs(pool.endpoints).__next__

    def choose(_call: Call) -> Endpoint:
        one, other = draw()
        busy, rival = len(one.in_flight) * other.instance.weight, len(other.in_flight) * one.instance.weight
        return one if busy <= rival else other

    return choose


def only(pool: Pool) -> Choose:
    """The one that there is."""
    endpoint = pool.endpoints[0]
    return lambda _call: endpoint


def pairs(endpoints: tuple[Endpoint, ...]) -> Iterator[tuple[Endpoint, Endpoint]]:
    """For ever, two different ones of ``endpoints`` (at least two). Every endpoint is drawn as often as any other and meets
    many rivals, in small fleets all. Dealt from a stack instead of drawn by lot: it costs a third, and no streak of bad luck
    leaves anybody out. Threads may share it: iterators in C over tuples that are there run no other code in between."""
    size = len(endpoints)
    start = chance.randrange(size)
    first = endpoints[start:] + endpoints[:start]
    many = max(4, RIVALS // size)
    distances = chance.sample(range(1, size), many) if many < size - 1 else range(1, size)
    shifts = [slice(far, far + size) for far in distances]
    second = tuple(itertools.chain.from_iterable(map((first * 2).__getitem__, shifts)))
    return zip(itertools.cycle(first), itertools.cycle(second), strict=False)
