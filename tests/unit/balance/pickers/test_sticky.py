"""Sessions that stay where they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from meshlib.balance.fleet import Fleet
from meshlib.balance.pickers import ConsistentHash, PeakEwma, Sticky, cookie, round_robin
from meshlib.balance.pickers.sticky import Sessions
from meshlib.balance.tiers import Pool
from meshlib.errors import ConfigError
from meshlib.model import Instance
from meshlib.outcome import Outcome
from meshlib.testing import FakeClock
from tests.unit.balance.pickers.naive import by_path, calls
from tests.unit.flows import call_to, fleet, update

NAMES = [f"orders-{number}" for number in range(10)]
MORE = [f"orders-{number}" for number in range(20)]
SESSIONS = calls(f"session-{number}" for number in range(300))


def where(picker: Any, known: Fleet, sessions: Any = SESSIONS) -> list[str]:
    choose = picker(Pool(known.tiers.usable, known.tiers.members, known.tiers.memo))
    return [choose(call).instance.id for call in sessions]


def changed(before: list[str], after: list[str]) -> int:
    return sum(one != other for one, other in zip(before, after, strict=True))


def test_sessions_stay_when_others_join() -> None:
    known, sticky, hashed = fleet(*NAMES), Sticky(by_path), ConsistentHash(by_path, load=None)
    before = where(sticky, known)
    assert before == where(hashed, known) == where(Sticky(by_path), known), "other processes make the same first choice"
    update(known, *MORE)
    assert where(sticky, known) == before
    assert changed(before, where(hashed, known)) > 100, "the control: hashing alone moves half of them"


def test_only_sessions_of_the_one_that_is_gone_move_and_they_stay_away() -> None:
    known, sticky = fleet(*NAMES), Sticky(by_path)
    before = where(sticky, known)
    gone = known.find("orders-3")
    assert gone is not None
    known.eject(gone)
    after = where(sticky, known)
    assert {one for one, other in zip(before, after, strict=True) if one != other} == {"orders-3"}
    assert gone.ejected is not None
    known.restore(gone, gone.ejected)
    assert where(sticky, known) == after, "the session is at the other one now"


def test_a_second_attempt_elsewhere_does_not_move_the_session() -> None:
    known, sticky = fleet(*NAMES), Sticky(by_path)
    (home,) = where(sticky, known, SESSIONS[:1])
    endpoint = known.find(home)
    assert endpoint is not None
    tiers = known.tiers
    others = Pool(tuple(one for one in tiers.usable if one is not endpoint), tiers.members, tiers.memo)
    assert sticky(others)(SESSIONS[0].excluding(endpoint)).instance.id != home
    assert where(sticky, known, SESSIONS[:1]) == [home]
    elsewhere = sticky(others)(SESSIONS[0]).instance.id
    assert where(sticky, known, SESSIONS[:1]) == [elsewhere], "the control: a first attempt does"


def test_a_key_that_names_an_instance() -> None:
    known, sticky = fleet(*NAMES), Sticky(cookie("session"))
    calls = [call_to(headers=[(b"cookie", b"session=%s" % name.encode())]) for name in NAMES]
    assert where(sticky, known, calls) == NAMES
    assert where(sticky, fleet(*NAMES[:5]), calls)[:5] == NAMES[:5]
    assert set(where(sticky, fleet(*NAMES[:5]), calls)[5:]) <= set(NAMES[:5]), "one that is not there names nobody"


def test_idle_sessions_are_forgotten() -> None:
    clock = FakeClock()
    known, sticky = fleet(*NAMES), Sticky(by_path, idle=60.0, clock=clock)
    before = where(sticky, known)
    update(known, *MORE)
    for _ in range(3):
        clock.advance(59.0)
        assert where(sticky, known) == before, "each call counts"
    clock.advance(60.0)
    assert where(sticky, known) == where(ConsistentHash(by_path, load=None), known) != before


def test_one_picker_for_two_services() -> None:
    """Instances of different services may have the same ids."""
    sticky = Sticky(by_path)
    known = fleet(*NAMES)
    other = fleet(*(Instance("stock", name, "10.0.0.1", 80) for name in NAMES[:3]))
    first, second = where(sticky, known), where(sticky, other)
    update(known, *MORE)
    assert where(sticky, other) == second
    assert where(sticky, known) == first


def test_long_keys_are_kept_short() -> None:
    sticky = Sticky(by_path)
    where(sticky, fleet(*NAMES), calls("x" * 10_000 + str(number) for number in range(10)))
    kept = [session[2] for half in sticky._sessions._halves for session in half]
    assert len(set(kept)) == 10
    assert max(map(len, kept)) <= 64


# -- what is remembered


def test_the_latest_are_remembered_and_no_more_than_that() -> None:
    sessions = Sessions(100, 60.0)
    for number in range(1000):
        sessions.put(("", "orders", b"%d" % number), b"a", 0.0)
        sessions.put(("", "orders", b"kept"), b"b", 0.0)
        assert len(sessions) <= 100
    known = [number for number in range(1000) if sessions.get(("", "orders", b"%d" % number), 0.0)]
    assert known[-49:] == list(range(951, 1000)), "half of them at least"
    assert sessions.get(("", "orders", b"kept"), 0.0) == b"b", "what is used is not old"


def test_it_is_forgotten_at_its_time() -> None:
    sessions = Sessions(100, 60.0)
    sessions.put(("", "orders", b"1"), b"a", 10.0)
    assert sessions.get(("", "orders", b"1"), 69.9) == b"a"
    assert sessions.get(("", "orders", b"1"), 70.0) == b""


# -- as all of them


def test_calls_without_a_key_go_to_the_inner_picker() -> None:
    assert Counter(where(Sticky(cookie("session"), inner=round_robin), fleet(*NAMES), [call_to()] * 50)) == dict.fromkeys(
        NAMES, 5
    )


def test_the_inner_picker_learns() -> None:
    endpoint = fleet("a").tiers.prime[0]
    Sticky(by_path, inner=PeakEwma()).observe(endpoint, 0.01, Outcome.ANSWERED, 5.0)
    assert endpoint.measured > 0


def test_a_key_that_is_not_bytes() -> None:
    with pytest.raises(ConfigError, match="gave a str, not bytes"):
        where(Sticky(lambda _call: "text"), fleet("a", "b"))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"key": "session"}, "Sticky\\(key=\\)"),
        ({"entries": 1}, "entries=10_000"),
        ({"entries": 10.0}, "entries=10_000"),
        ({"idle": 0}, "idle=1800"),
        ({"idle": float("inf")}, "within a year"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Sticky(**{"key": by_path, **options})
