"""Pickers around pickers: zones, slow start, the registry's own order; and weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from meshlib.balance.fleet import Fleet
from meshlib.balance.pickers import PeakEwma, RegistryPicks, SlowStart, Zone, random, round_robin, weighted
from meshlib.balance.tiers import Here, Pool
from meshlib.errors import ConfigError
from meshlib.outcome import Outcome
from meshlib.testing import FakeClock
from tests.unit.flows import call_to, fleet, instance, prime, update


def picked(choose: Any, times: int = 1000) -> Counter[str]:
    return Counter(choose(call_to()).instance.id for _ in range(times))


def zoned(*, zone: str = "z1", **zones: int) -> tuple[Fleet, Pool]:
    known = fleet(*(instance(f"{name}{number}", zone=name) for name, count in zones.items() for number in range(count)))
    return known, replace(prime(known), here=Here(zone))


def pool_of(known: Fleet, zone: str = "z1") -> Pool:
    return replace(prime(known), here=Here(zone))


# -- zones


def test_the_own_zone_is_preferred() -> None:
    _, pool = zoned(z1=2, z2=8)
    assert picked(Zone(round_robin)(pool)) == {"z10": 500, "z11": 500}


@pytest.mark.parametrize("zone", ["", "elsewhere"])
def test_without_a_zone_or_with_nobody_in_it_anyone(zone: str) -> None:
    _, pool = zoned(zone=zone, z1=2, z2=2)
    assert set(picked(Zone(round_robin)(pool))) == {"z10", "z11", "z20", "z21"}


def test_a_zone_that_is_half_down_sends_a_share_away() -> None:
    known, _ = zoned(z1=4, z2=4)
    for name in ("z10", "z11"):
        known.eject(known.find(name))  # type: ignore[arg-type]
    seen = picked(Zone(round_robin, headroom=1.4)(pool_of(known)), 10_000)
    away = sum(count for name, count in seen.items() if name.startswith("z2"))
    assert 2600 < away < 3400, "half of it with a headroom of 1.4 carries 70 %"
    seen = picked(Zone(round_robin, headroom=100)(pool_of(known)), 1000)
    assert set(seen) == {"z12", "z13"}, "the control: without the share, the two take all"


def test_a_zone_that_is_down_sends_all_away() -> None:
    known, _ = zoned(z1=1, z2=2)
    known.eject(known.find("z10"))  # type: ignore[arg-type]
    assert set(picked(Zone(round_robin)(pool_of(known)))) == {"z20", "z21"}


def test_a_busy_zone_spills_over() -> None:
    known, pool = zoned(z1=1, z2=1)
    choose = Zone(round_robin, busy=8)(pool)
    near, far = known.find("z10"), known.find("z20")
    assert near is not None
    assert far is not None
    near.in_flight |= set(range(8))
    assert set(picked(choose)) == {"z10"}
    near.in_flight.add(8)
    assert set(picked(choose)) == {"z20"}
    far.in_flight |= {0, 1}
    assert set(picked(choose)) == {"z10"}, "nor is the other zone buried"


# -- slow start


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_newcomer_gets_its_share_little_by_little(clock: FakeClock) -> None:
    known = fleet("a", "b", clock=clock)
    update(known, "a", "b", "new")
    choose = SlowStart(random, seconds=30.0, clock=clock)(prime(known))
    shares = []
    for _ in range(4):
        shares.append(picked(choose, 6000)["new"] / 6000)
        clock.advance(10.0)
    assert shares[0] == 0.0
    assert 0.08 < shares[1] < 0.14
    assert 0.18 < shares[2] < 0.26
    assert 0.30 < shares[3] < 0.37
    assert 0.30 < picked(random(prime(known)), 6000)["new"] / 6000, "the control: it has all of it at once"


def test_who_was_there_from_the_start_is_warm(clock: FakeClock) -> None:
    known = fleet("a", "b", clock=clock)
    assert picked(SlowStart(round_robin, clock=clock)(prime(known))) == {"a": 500, "b": 500}


def test_with_only_newcomers_somebody_has_to(clock: FakeClock) -> None:
    known = fleet("a", clock=clock)
    update(known, "b", "c")
    assert picked(SlowStart(round_robin, clock=clock)(prime(known))) == {"b": 500, "c": 500}


def test_a_memo_is_of_the_members_it_was_made_of(clock: FakeClock) -> None:
    """Who is warm changes with time and no snapshot: what was made of the warm ones then is not used now."""
    seen: list[dict[Any, Any]] = []

    def remembering(pool: Pool) -> Any:
        pool.memo["made of"] = pool.memo.get("made of", pool.members)
        assert pool.memo["made of"] == pool.members
        seen.append(pool.memo)
        return round_robin(pool)

    known = fleet("a", clock=clock)
    update(known, "a", "b")
    pool, picker = prime(known), SlowStart(remembering, seconds=30.0, clock=clock)
    picker(pool)
    clock.advance(10.0)
    update(known, "a", "b", "c")
    pool = prime(known)
    for _ in range(3):
        picker(pool)
        clock.advance(15.0)
    assert len(seen) > 5


# -- the registry picks


def test_the_lowest_order_that_is_there() -> None:
    labels = {"a": {"mesh-order": "1"}, "b": {"mesh-order": "2"}, "c": {"mesh-order": "2"}, "d": {"mesh-order": "first"}}
    known = fleet(*(instance(name, labels=one) for name, one in labels.items()))
    assert set(picked(RegistryPicks()(prime(known)))) == {"d"}, "what is no number is no order, so 0"
    known.eject(known.find("d"))  # type: ignore[arg-type]
    assert set(picked(RegistryPicks()(prime(known)))) == {"a"}
    known.eject(known.find("a"))  # type: ignore[arg-type]
    assert set(picked(RegistryPicks()(prime(known)))) == {"b", "c"}


def test_its_weights() -> None:
    known = fleet(instance("a", weight=3), instance("b", weight=1))
    assert 745 <= picked(RegistryPicks()(prime(known)))["a"] <= 755


# -- weights


def chi_square(seen: Counter[str], weights: dict[str, int]) -> float:
    times, total = sum(seen.values()), sum(weights.values())
    return sum((seen[name] - times * weight / total) ** 2 / (times * weight / total) for name, weight in weights.items())


WEIGHTS = {f"i{number}": weight for number, weight in enumerate([1, 2, 3, 5, 8, 13, 1, 100, 7, 60])}
LIMIT = 21.67
"""Chi-square with nine degrees of freedom exceeds it once in a hundred times by chance."""


def test_weights_are_kept() -> None:
    known = fleet(*(instance(name, weight=weight) for name, weight in WEIGHTS.items()))
    assert chi_square(picked(weighted(prime(known)), 20_000), WEIGHTS) < LIMIT / 10, "smoother than chance"
    assert chi_square(picked(random(prime(known)), 20_000), WEIGHTS) > LIMIT * 100, "the control"


def test_weights_are_kept_smoothly() -> None:
    """In any stretch of turns, nobody is more than two picks away from its share; by lot (the control) it would be many."""
    known = fleet(*(instance(name, weight=weight) for name, weight in WEIGHTS.items()))
    choose, total = weighted(prime(known)), sum(WEIGHTS.values())
    turns = [choose(call_to()).instance.id for _ in range(5000)]
    for start in range(0, 4900, 7):
        for length in (10, 50, 100):
            seen = Counter(turns[start : start + length])
            for name, weight in WEIGHTS.items():
                assert abs(seen[name] - length * weight / total) < 3.0, (name, start, length)


def test_nobody_wants_any() -> None:
    known = fleet(instance("a", weight=0), instance("b", weight=0))
    assert picked(weighted(Pool(known.tiers.reserve))) == {"a": 500, "b": 500}


# -- all of them


@pytest.mark.parametrize("around", [Zone, SlowStart, RegistryPicks])
def test_the_inner_picker_learns(around: Any) -> None:
    endpoint = prime(fleet("a")).endpoints[0]
    around(PeakEwma()).observe(endpoint, 0.01, Outcome.ANSWERED, 5.0)
    assert endpoint.measured > 0
    assert not hasattr(around(round_robin), "observe")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Zone("random"), "inner"),  # type: ignore[arg-type]
        (lambda: Zone(random, headroom=0.5), "headroom"),
        (lambda: SlowStart(random, seconds=0), "seconds=30"),
    ],
)
def test_options_that_make_no_sense(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()
