"""Pickers: what is picked how often."""

from __future__ import annotations

from collections import Counter

import pytest

from meshlib.balance.pickers import PICKERS, least_request, named, round_robin
from meshlib.errors import ConfigError
from tests.unit.flows import call_to, fleet, prime


def test_round_robin_gives_each_its_turn() -> None:
    choose = round_robin(prime(fleet("a", "b", "c")))
    assert Counter(choose(call_to()).instance.id for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_least_request_never_picks_the_busiest_of_its_two() -> None:
    pool = prime(fleet("a", "b"))
    pool.endpoints[0].in_flight.add(1)
    choose = least_request(pool)
    assert {choose(call_to()).instance.id for _ in range(50)} == {"b"}


def test_least_request_reaches_everybody() -> None:
    choose = least_request(prime(fleet(*"abcd")))
    seen = Counter(choose(call_to()).instance.id for _ in range(2000))
    assert set(seen) == set("abcd")
    assert min(seen.values()) > 350, "idle endpoints share evenly"


@pytest.mark.parametrize("picker", PICKERS.values(), ids=PICKERS)
def test_one_is_always_that_one(picker: object) -> None:
    pool = prime(fleet("a"))
    choose = named(picker)(pool)  # type: ignore[arg-type]
    assert [choose(call_to()) for _ in range(3)] == [*pool.endpoints] * 3


def test_names() -> None:
    assert named("round_robin") is round_robin
    with pytest.raises(ConfigError, match="least_request"):
        named("rounds")
