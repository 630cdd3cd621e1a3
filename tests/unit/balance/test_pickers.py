"""Pickers: what is picked how often."""

from __future__ import annotations

from collections import Counter

import pytest

from meshlib.balance.pickers import PICKERS, least_request, named, round_robin
from meshlib.errors import ConfigError
from tests.unit.flows import call_to, fleet


def test_round_robin_gives_each_its_turn() -> None:
    choose = round_robin(fleet("a", "b", "c").tiers.prime)
    assert Counter(choose(call_to()).instance.id for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_least_request_never_picks_the_busiest_of_its_two() -> None:
    endpoints = fleet("a", "b").tiers.prime
    endpoints[0].in_flight.add(1)
    choose = least_request(endpoints)
    assert {choose(call_to()).instance.id for _ in range(50)} == {"b"}


def test_least_request_reaches_everybody() -> None:
    endpoints = fleet(*"abcd").tiers.prime
    choose = least_request(endpoints)
    seen = Counter(choose(call_to()).instance.id for _ in range(2000))
    assert set(seen) == set("abcd")
    assert min(seen.values()) > 350, "idle endpoints share evenly"


@pytest.mark.parametrize("picker", PICKERS.values(), ids=PICKERS)
def test_one_is_always_that_one(picker: object) -> None:
    endpoints = fleet("a").tiers.prime
    choose = named(picker)(endpoints)  # type: ignore[arg-type]
    assert [choose(call_to()) for _ in range(3)] == [endpoints[0]] * 3


def test_names() -> None:
    assert named("round_robin") is round_robin
    with pytest.raises(ConfigError, match="least_request"):
        named("rounds")
