"""Subsets against a naive balancer, in lockstep; keys under growing shares; globs against another implementation."""

from __future__ import annotations

import random
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.balance.endpoint import Ejection, Endpoint, Reason
from meshlib.balance.fleet import Fleet
from meshlib.balance.layer import Balance
from meshlib.balance.narrow import LAST_RESORTS
from meshlib.balance.outliers import Rules
from meshlib.balance.pickers import random as anyone
from meshlib.errors import NoInstances
from meshlib.flow import Call
from meshlib.keys import header
from meshlib.model import Status
from meshlib.patterns import matcher
from meshlib.policies import Rule, route
from meshlib.policies.base import Site
from meshlib.subsets import Subset
from meshlib.testing import Reply, play
from tests.unit.flows import FakeSource, call_to, fleet, instance, update

STATES, SEED = 20_000, 20_250_107

VERSIONS = {"1.0": 1, "v1.7.3": 1, "2.0.0": 2, "": 0, "main": 0, "3.0.0-rc.1": 0}
"""Versions, and the major number whose range has them."""


def naive_match(subset: Subset, endpoint: Endpoint) -> bool:
    one = endpoint.instance
    labels: Any = subset.labels
    if not all(any(fnmatchcase(one.labels.get(name, "\0"), each) for each in wanted) for name, wanted in labels):
        return False
    if subset.version and VERSIONS[one.version] != int(subset.version.removeprefix("^")):
        return False
    return not subset.zone or any(fnmatchcase(one.zone, each) for each in subset.zone)


def naive_first(found: list[Endpoint], number: int) -> list[Endpoint]:
    if not number:
        return found
    return sorted(found, key=lambda one: blake2b(b"\0" + one.instance.id.encode(), digest_size=8).digest())[-number:]


def naive(known: Fleet, call: Call) -> list[Endpoint] | None:
    """Who may be picked, None when nobody may."""
    tiers, subset = known.tiers, call.subset
    assert subset is not None
    chain = [subset]
    while chain[-1].otherwise:
        chain.append(chain[-1].otherwise)
    for tier in (tiers.prime, tiers.reserve, tiers.outliers, tiers.ejected):
        if tier is tiers.ejected and (subset.reachable or call.last_resorts >= LAST_RESORTS):
            continue
        left = [one for one in tier if one not in call.tried]
        for each in chain:
            found = naive_first([one for one in left if naive_match(each, one)], each.instances)
            if found:
                return found
        if left and not chain[-1].strict:
            return left
    return None


def state(chance: random.Random) -> Fleet:
    names = [f"o-{number}" for number in range(chance.randint(0, 9))]
    known = fleet(rules=Rules(panic=chance.choice((0.0, 0.5))))
    _list(known, names, chance)
    return known


def _list(known: Fleet, names: list[str], chance: random.Random) -> None:
    listed = [
        instance(
            name, weight=chance.choice((0, 1, 1, 1)), zone=chance.choice(("", "z1", "z2")), version=chance.choice(list(VERSIONS)),
            status=chance.choice([Status.UP] * 4 + [Status.DRAINING, Status.MAINTENANCE]),
            labels=chance.choice(({}, {"track": "canary"}, {"track": "stable-7", "team": "pay"})),
        )
        for name in names
    ]  # fmt: skip
    update(known, *listed, suspects=[name for name in names if chance.random() < 0.1])
    for endpoint in list(known._endpoints.values()):
        if chance.random() < 0.3:
            known.eject(endpoint, Ejection(chance.choice(list(Reason)), 1.0))


def subset(chance: random.Random, depth: int = 0) -> Subset:
    return Subset(
        labels=chance.choice(({}, {}, {"track": "canary"}, {"track": "*a*"}, {"track": ["x", "stable*"], "team": "pay"})),
        version=chance.choice(("", "", "^1", "^2", "^9")), zone=chance.choice(((), (), "z1", "z*", ("z2", "z9"))),
        instances=chance.choice((0, 0, 1, 2)), strict=chance.random() < 0.3, reachable=chance.random() < 0.2,
        otherwise=subset(chance, depth + 1) if depth < 2 and chance.random() < 0.3 else None,
    )  # fmt: skip


def lockstep(chance: random.Random) -> int:
    """One balancer over a fleet that changes, and calls that fail until nobody is left. Returns how many were picked."""
    known, picked = state(chance), 0
    balance = Balance(FakeSource(known), anyone)
    wanted = [subset(chance) for _ in range(3)]
    for _ in range(4):
        call = call_to()
        call.subset = chance.choice(wanted)
        for _ in range(12):
            allowed = naive(known, call)
            try:
                endpoint = balance.pick(call)
            except NoInstances:
                assert allowed is None, f"{call.subset}: nobody, while {allowed} could"
                break
            assert allowed is not None, f"{call.subset}: {endpoint}, while nobody may"
            assert endpoint in allowed, f"{call.subset}: {endpoint} is none of {allowed}"
            picked += 1
            call = call.excluding(endpoint, last_resort=endpoint.ejected is not None)
        if chance.random() < 0.7:
            _list(known, sorted({*known._endpoints, *[f"o-{chance.randint(0, 9)}"]})[: chance.randint(0, 9)], chance)
    return picked


def test_who_may_be_picked() -> None:
    chance, picked = random.Random(SEED), 0
    for number in range(STATES // 4):
        try:
            picked += lockstep(chance)
        except AssertionError as wrong:
            pytest.fail(f"state {number} of seed {SEED}: {wrong}")
    assert picked > STATES


@pytest.mark.parametrize(
    ("where", "broken"),
    [
        ("meshlib.balance.narrow.narrowed", lambda pool, _subset: pool),
        ("meshlib.balance.narrow.first", lambda pool, _name, size: pool.endpoints[:size]),
        ("meshlib.balance.narrow._last", lambda tiers, _subset, _last_resorts: tiers.ejected),
        ("meshlib.balance.layer.Balance.prepare", lambda _self: None),
    ],
)
def test_the_lockstep_would_notice(where: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls: a balancer that does not heed subsets, one that does not rank, one that takes the dead, one that misses
    changes."""
    monkeypatch.setattr(where, broken)
    chance = random.Random(SEED)
    with pytest.raises(AssertionError):
        for _ in range(500):
            lockstep(chance)


@given(st.binary(min_size=1, max_size=40), st.floats(0, 100), st.floats(0, 100))
def test_a_key_stays_where_the_share_grows(key: bytes, one: float, other: float) -> None:
    less, more = sorted((one, other))
    call = call_to(headers=[(b"x", key)])
    new, old = Subset(version="^2"), Subset(version="^1")

    def where(share: float) -> Any:
        layer = route(Rule(split={new: share, old: 100 - share}, key=header("x"))).bind(Site(service="orders"))
        return play([layer], [Reply()], call=call).sent[0].subset

    if where(less) == new:
        assert where(more) == new
    if where(more) == old:
        assert where(less) == old


@settings(max_examples=500)
@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=12))
def test_globs(pattern: str, text: str) -> None:
    assert matcher((pattern,))(text) == fnmatchcase(text, pattern)
