"""Subsets: each consumer has a few of many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from meshlib.balance import rendezvous
from meshlib.balance.fleet import Fleet
from meshlib.balance.pickers import ConsistentHash, PeakEwma, Subset, round_robin
from meshlib.balance.rendezvous import first
from meshlib.balance.tiers import Here, Pool
from meshlib.errors import ConfigError
from meshlib.flow import Call
from meshlib.outcome import Outcome
from tests.unit.balance.pickers.naive import by_path
from tests.unit.flows import call_to, fleet, update

NAMES = [f"orders-{number:03d}" for number in range(100)]


def part(known: Fleet, consumer: str = "shop@web-1:80", size: int = 20) -> set[str]:
    """The ids that a consumer calls."""
    seen: list[Pool] = []

    def inner(pool: Pool) -> Callable[[Call], Any]:
        seen.append(pool)
        return round_robin(pool)

    tiers = known.tiers
    choose = Subset(size=size, inner=inner)(Pool(tiers.usable, tiers.members, tiers.memo, Here("", consumer)))
    picked = {choose(call_to()).instance.id for _ in range(size * 2)}
    assert picked <= {one.instance.id for one in seen[0].members}
    return picked


def test_a_consumer_keeps_its_own() -> None:
    first = part(fleet(*NAMES))
    assert len(first) == 20
    assert part(fleet(*NAMES)) == first, "another process, or this one later"
    assert part(fleet(*NAMES), "shop@web-2:80") != first


def test_a_small_service_is_left_whole() -> None:
    assert part(fleet(*NAMES[:20])) == set(NAMES[:20])


def consumers(known: Fleet, size: int = 20, number: int = 500) -> float:
    """How far the numbers of consumers of each instance are from even, in standard deviations of chi-square."""
    seen: Counter[str] = Counter()
    tiers = known.tiers
    for consumer in range(number):
        pool = Pool(tiers.usable, tiers.members, {}, Here("", f"shop@web-{consumer}:80"))
        seen.update(one.instance.id for one in first(pool, pool.here.consumer, size))
    share = size / len(NAMES)
    spread = sum((seen[name] - number * share) ** 2 for name in NAMES) / (number * share * (1 - share))
    return (spread - 99) / math.sqrt(2 * 99)


def test_every_instance_has_about_as_many_consumers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(consumers(fleet(*NAMES))) < 4
    score = rendezvous._score
    monkeypatch.setattr(rendezvous, "_score", lambda _consumer, one: score("anybody", one))
    assert consumers(fleet(*NAMES)) > 100, "the control: all of them would call the same"


def test_one_that_leaves_changes_one_place() -> None:
    before = part(fleet(*NAMES))
    for gone in NAMES[:50]:
        after = part(fleet(*(name for name in NAMES if name != gone)))
        assert before - after == before & {gone}
        assert len(after) == 20
    assert any(name in before for name in NAMES[:50])


def test_one_that_is_out_is_stood_in_for_and_comes_back() -> None:
    known = fleet(*NAMES)
    before = part(known)
    gone = known.find(min(before))
    assert gone is not None
    known.eject(gone)
    after = part(known)
    assert before - after == {gone.instance.id}
    assert len(after) == 20
    assert gone.ejected is not None
    known.restore(gone, gone.ejected)
    assert part(known) == before


def test_what_inner_pickers_keep_survives_as_long_as_the_part_is_the_same() -> None:
    known = fleet(*NAMES)
    picker = Subset(size=20, inner=ConsistentHash(by_path))
    pool = Pool(known.tiers.usable, known.tiers.members, known.tiers.memo, Here("", "shop"))
    picker(pool)
    (ring,) = [kept for name, kept in pool.memo.items() if name[-1] == "subset"]
    outside = next(one for one in known.tiers.members if one not in ring[0])
    known.eject(outside)
    picker(Pool(known.tiers.usable, known.tiers.members, known.tiers.memo, Here("", "shop")))
    assert ring[1] is known.tiers.memo[picker, "subset"][1]
    known.eject(ring[0][0])
    picker(Pool(known.tiers.usable, known.tiers.members, known.tiers.memo, Here("", "shop")))
    assert ring[1] is not known.tiers.memo[picker, "subset"][1], "the control: another part"


def test_nothing_is_kept_of_other_members() -> None:
    known = fleet(*NAMES)
    before = part(known)
    update(known, *NAMES[50:])
    assert part(known) <= set(NAMES[50:])
    update(known, *NAMES)
    assert part(known) == before


def test_the_inner_picker_learns() -> None:
    endpoint = fleet("a").tiers.prime[0]
    Subset(inner=PeakEwma()).observe(endpoint, 0.01, Outcome.ANSWERED, 5.0)
    assert endpoint.measured > 0
    assert hasattr(Subset(), "observe"), "the default learns"


@pytest.mark.parametrize("options", [{"size": 0}, {"size": True}, {"size": 1.5}, {"inner": "random"}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="size=100|inner=PeakEwma"):
        Subset(**options)
