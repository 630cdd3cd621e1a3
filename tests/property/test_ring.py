"""The ring and its bound in lockstep with a sorted list that is walked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers import ConsistentHash
from meshlib.balance.pickers.hashing import points_of
from meshlib.balance.pickers.ring import OWNER, Ring
from meshlib.balance.tiers import Pool
from meshlib.keys import digest
from meshlib.testing import FakeClock
from tests.unit.balance.pickers import naive
from tests.unit.balance.pickers.naive import NaiveRing, by_path
from tests.unit.flows import call_to, fleet, instance

ids = st.text("abcdefgh0123456789-", min_size=1, max_size=12)
services = st.dictionaries(ids, st.integers(0, 30), min_size=1, max_size=12)
sizes = st.sampled_from([1, 2, 3, 7, 16, 40, 160])
keys = st.lists(st.binary(max_size=20), min_size=1, max_size=20)


def pool_of(service: dict[str, int], chosen: Any = None) -> Pool:
    """Of instances with these weights, those that ``chosen`` picks (by default all) usable."""
    known = fleet(*(instance(name, weight=weight) for name, weight in sorted(service.items())))
    members = known.tiers.members
    return Pool(tuple(members if chosen is None else chosen(members)), members, known.tiers.memo)


@given(service=services, size=sizes)
def test_its_points_are_those_of_the_model(service: dict[str, int], size: int) -> None:
    pool = pool_of(service)
    model = NaiveRing(pool, size)
    ring = Ring(sorted(service), [model.counts[one] for one in pool.members], size)
    *points, _again = zip(ring.points, ring.owners, strict=True)
    assert [(int((point - 1) * (1 << 30)), word & OWNER) for point, word in points] == [one[:2] for one in model.points]
    assert ring.owners[-1] & OWNER == ring.owners[0] & OWNER


@given(service=services, size=sizes, sent=keys, data=st.data())
def test_a_key_belongs_to_the_next_usable_one_clockwise(
    service: dict[str, int], size: int, sent: list[bytes], data: st.DataObject
) -> None:
    chosen = st.lists(st.sampled_from(sorted(service)), min_size=1, unique=True)
    usable = data.draw(chosen)
    pool = pool_of(service, lambda members: [one for one in members if one.instance.id in usable])
    choose, model = ConsistentHash(by_path, points=size, load=None)(pool), NaiveRing(pool, size)
    for key in sent:
        assert choose(call_to(key)) is model.owner(digest(key))


@given(edge=st.sampled_from([0, 1, (1 << 30) - 1]), service=services, size=sizes, offset=st.integers(-1, 1), data=st.data())
def test_places_beside_points(edge: int, service: dict[str, int], size: int, offset: int, data: st.DataObject) -> None:
    """Where off-by-one errors live: exactly on a point, beside it, at both ends of the circle."""
    pool = pool_of(service)
    model = NaiveRing(pool, size)
    place = data.draw(st.sampled_from([edge, *(place + offset for place, *_ in model.points)])) % (1 << 30)
    ring = Ring(sorted(service), [model.counts[one] for one in pool.members], size)
    cell = place >> ring.shift
    low, high = ring.edges[cell], ring.edges[cell + 1]
    index = naive_bisect(ring, place, low, high)
    assert pool.members[ring.owners[index] & OWNER] is model.owner(place)


def naive_bisect(ring: Ring, place: int, low: int, high: int) -> int:
    return next((index for index in range(low, high) if ring.points[index] >= 1.0 + place * 2.0**-30), high)


steps = st.lists(st.tuples(st.sampled_from(["pick", "pick", "pick", "release", "release all of one"]), st.integers(0, 10_000)),
                 max_size=80)  # fmt: skip


def has_room(room: dict[Endpoint, int], one: Endpoint) -> bool:
    return len(one.in_flight) < room[one]


def play(service: dict[str, int], load: float | None, bound: float, script: list[tuple[str, int]]) -> int:
    """Picks for few keys, and releases; how many picks broke the ``bound`` of the model."""
    pool = pool_of(service)
    choose, model = ConsistentHash(by_path, points=16, load=load, clock=FakeClock())(pool), NaiveRing(pool, 16)
    broken = 0
    for what, number in script:
        if what == "pick":
            room = model.room(bound)
            place = b"%d" % (number % 3)
            endpoint = choose(call_to(place))
            broken += len(endpoint.in_flight) + 1 > room[endpoint]
            if load is not None:
                assert endpoint is model.owner(digest(place), partial(has_room, room))
            endpoint.in_flight.add(object())
        else:
            endpoint = pool.members[number % len(pool.members)]
            for attempt in sorted(endpoint.in_flight, key=id)[: 1 if what == "release" else None]:
                endpoint.in_flight.discard(attempt)
    return broken


@settings(deadline=None)
@given(service=services, load=st.sampled_from([1.05, 1.25, 2.0]), script=steps)
def test_the_bound_holds_at_every_pick(service: dict[str, int], load: float, script: list[tuple[str, int]]) -> None:
    assert play(service, load, load, script) == 0


def test_the_control_without_a_bound_it_is_broken() -> None:
    script = [("pick", 0)] * 40
    assert play({"a": 1, "b": 1, "c": 1}, None, 1.25, script) > 20
    assert play({"a": 1, "b": 1, "c": 1}, 1.25, 1.25, script) == 0


@pytest.mark.parametrize("size", [1, 160])
def test_points_by_weight(size: int) -> None:
    pool = pool_of({"a": 0, "b": 10, "c": 20})
    assert points_of(pool.members, 10.0, size) == [1, size, 2 * size]
    assert naive.points_of("c", size, 160) == naive.points_of("c", 2 * size, 160)[:size], "those it has, it keeps"
