"""A hundred thousand states of health and weight: as long as any instance could answer, somebody is picked, and a call that
fails over reaches everybody that it may."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshlib.balance.endpoint import Ejection, Endpoint, Reason
from meshlib.balance.fleet import Fleet
from meshlib.balance.layer import Balance
from meshlib.balance.narrow import LAST_RESORTS
from meshlib.balance.outliers import Rules
from meshlib.balance.pickers import PICKERS
from meshlib.balance.tiers import Here
from meshlib.errors import NoInstances
from meshlib.model import Status
from meshlib.outcome import Outcome
from tests.unit.flows import FakeSource, call_to, fleet, instance, update

STATES = 100_000
SEED = 20_241_121


def state(chance: random.Random) -> Fleet:
    """Up to eight instances in any state that registries, calls and judges can bring them into."""
    names = "abcdefgh"[: chance.randint(1, 8)]
    listed = [
        instance(
            name, weight=chance.choice((0, 1, 1, 7, 10_000)), zone=chance.choice(("", "z1", "z2")),
            status=chance.choice((Status.UP, Status.UP, Status.UP, Status.DRAINING, Status.MAINTENANCE)),
            labels={"mesh-order": chance.choice(("0", "1", "x"))},
        )
        for name in names
    ]  # fmt: skip
    known = fleet(rules=Rules(share=chance.choice((0.0, 0.5, 1.0)), panic=chance.choice((0.0, 0.3, 1.0))))
    if chance.random() < 0.3:
        update(known, *listed[:1])  # so that the others joined later
    update(known, *listed, suspects=[name for name in names if chance.random() < 0.2])
    for name in names:
        endpoint = known.find(name)
        assert endpoint is not None
        _experience(known, endpoint, chance)
    return known


def _experience(known: Fleet, endpoint: Endpoint, chance: random.Random) -> None:
    endpoint.in_flight |= set(range(chance.choice((0, 0, 1, 50))))
    if chance.random() < 0.5:
        PICKERS["peak_ewma"].observe(endpoint, chance.choice((0.0, 0.01, 100.0)), chance.choice(list(Outcome)), 7.0)  # type: ignore[attr-defined]
    if chance.random() < 0.4:
        known.eject(endpoint, Ejection(chance.choice(list(Reason)), 1.0))


def could_answer(known: Fleet) -> set[Endpoint]:
    return {one for one in known._endpoints.values() if one.instance.status is not Status.MAINTENANCE}


def check(known: Fleet, picker: Any, here: Here, path: bytes) -> int:
    """Pick until nobody is left; returns how many were found."""
    balance, wanted, call = Balance(FakeSource(known), picker, here=here), could_answer(known), call_to(path)
    ejected = set(known.tiers.ejected)
    found: set[Endpoint] = set()
    while True:
        try:
            endpoint = balance.pick(call)
        except NoInstances:
            break
        assert endpoint in wanted, "nobody in maintenance, nobody unlisted"
        assert endpoint not in found, "nobody twice"
        assert endpoint not in ejected or found >= wanted - ejected, "the ejected last"
        found.add(endpoint)
        call = call.excluding(endpoint, last_resort=endpoint in ejected)
    assert found == wanted or (found >= wanted - ejected and len(found & ejected) == LAST_RESORTS)
    return len(found)


def test_never_an_empty_pick_while_anybody_could_answer() -> None:
    chance, pickers = random.Random(SEED), list(PICKERS.items())
    picked = 0
    for number in range(STATES // 2):
        known = state(chance)
        for name, picker in chance.sample(pickers, 2):
            here = Here(chance.choice(("", "z1", "z9")), "shop@a")
            try:
                picked += check(known, picker, here, b"/%d" % number)
            except AssertionError as wrong:
                pytest.fail(f"state {number} of seed {SEED}, {name}: {wrong} {known.tiers}")
    assert picked > STATES


def test_the_check_notices_who_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the lower tiers, as a balancer without them would be."""
    monkeypatch.setattr("meshlib.balance.tiers.Tiers.usable", property(lambda tiers: tiers.prime))
    monkeypatch.setattr(Balance, "_another", Balance._refuse)
    chance = random.Random(SEED)
    with pytest.raises(AssertionError):
        for _ in range(100):
            check(state(chance), PICKERS["round_robin"], Here(), b"/")
