"""Balance: who gets the attempt, and what the fleet learns of it."""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.layer import SUBSETS, Balance
from meshlib.balance.narrow import LAST_RESORTS
from meshlib.balance.pickers import GROUP, Choose, named
from meshlib.balance.tiers import Pool
from meshlib.errors import AttemptTimeout, ConfigError, ConnectFailed, ConnectionLost, NoInstances
from meshlib.flow import Call, compose, run
from meshlib.model import ServiceUrl, Status
from meshlib.outcome import Outcome
from meshlib.subsets import Subset
from tests.unit.flows import Answer, FakeSource, Script, call_to, fleet, governed, idle, in_turn, instance, update


def balance(known: object) -> Balance:
    return Balance(FakeSource(known), in_turn)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failure", "ejected"), [(ConnectFailed, True), (ConnectionLost, True), (AttemptTimeout, False), (OSError, False)]
)
def test_what_ejects(failure: type[Exception], ejected: bool) -> None:
    known = fleet("a")
    with pytest.raises(failure) as caught:
        run(compose([balance(known)]), call_to(), Script(failure))
    endpoint = known.find("a")
    assert (endpoint.ejected is not None) is ejected
    assert getattr(caught.value, "endpoint", endpoint) is endpoint
    assert idle(known)


def test_an_answer_forgives_earlier_failures() -> None:
    known = fleet("a")
    known.find("a").failures = 3
    run(compose([balance(known)]), call_to(), Script(Answer(404)))
    assert known.find("a").failures == 0


def test_nobody() -> None:
    for known in (fleet(), fleet(instance("a", status=Status.MAINTENANCE))):
        with pytest.raises(NoInstances, match="orders: nobody is registered") as caught:
            run(governed(known), call_to(), Script())
        assert caught.value.service == ServiceUrl("orders")


def test_exactly_one_instance_whatever_its_status() -> None:
    known = fleet("a", instance("b", status=Status.MAINTENANCE))
    script = Script(Answer())
    run(governed(known), call_to(target=ServiceUrl("orders", "", "b")), script)
    assert script.log == ["send b"]


def test_exactly_one_instance_has_no_substitute() -> None:
    script = Script(ConnectFailed)
    with pytest.raises(ConnectFailed) as caught:
        run(governed(fleet("a", "b")), call_to(target=ServiceUrl("orders", "", "b")), script)
    assert script.log == ["send b"]
    assert [one.id for one in caught.value.tried] == ["b"]
    with pytest.raises(NoInstances):
        run(governed(fleet("a")), call_to(target=ServiceUrl("orders", "", "b")), Script())


def test_a_new_snapshot_is_seen_by_the_next_call() -> None:
    known, layer = fleet("a"), None
    layer = balance(known)
    assert layer.pick(call_to()).instance.id == "a"
    update(known, "b")
    assert layer.pick(call_to()).instance.id == "b"
    known.eject(known.find("b"))
    assert layer.pick(call_to()).instance.id == "b"


def test_the_reserve_and_the_ejected_come_after_the_prime() -> None:
    known = fleet("a", instance("b", status=Status.DRAINING), "c")
    known.eject(known.find("a"))
    script = Script(*[ConnectFailed] * 3)
    with pytest.raises(ConnectFailed):
        run(governed(known), call_to(), script)
    assert script.log == ["send c", "send b", "send a"]


def test_last_resorts_are_bounded() -> None:
    known = fleet(*"abcdef")
    for name in "abcdef":
        known.eject(known.find(name))
    script = Script(*[ConnectFailed] * 6)
    with pytest.raises(ConnectFailed) as caught:
        run(governed(known), call_to(), script)
    assert len(script.log) == LAST_RESORTS
    assert len(caught.value.tried) == LAST_RESORTS


def test_dead_prime_endpoints_use_up_no_last_resort() -> None:
    """Many died at once, and one that had been ejected before is back: it is found."""
    known = fleet(*"abcdefg")
    known.eject(known.find("g"))
    script = Script(*[ConnectFailed] * 6, answer := Answer())
    assert run(governed(known), call_to(), script) is answer
    assert script.log[-1] == "send g"


def test_the_error_of_one_left_untried_names_all_that_were() -> None:
    layer = balance(fleet("a"))
    call = call_to()
    again = call.excluding(layer.pick(call))
    with pytest.raises(NoInstances, match="untried") as caught:
        layer.pick(again)
    assert [one.id for one in caught.value.tried] == ["a"]


class Learning:
    """A picker that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Outcome]] = []
        self.made = 0

    def __call__(self, pool: Pool) -> Choose:
        self.made += 1
        return in_turn(pool)

    def observe(self, endpoint: Endpoint, seconds: float, outcome: Outcome, now: float) -> None:
        assert now >= seconds >= 0
        self.told.append((endpoint.instance.id, outcome))


def test_a_picker_learns_how_every_attempt_ended() -> None:
    known, picker = fleet("a", "b"), Learning()
    for outcome in (Answer(), Answer(500), Answer(429), ZeroDivisionError):
        with suppress(ZeroDivisionError):
            run(governed(known, picker=picker), call_to(), Script(outcome))
    run(governed(known, picker=picker), call_to(), Script(ConnectFailed, Answer()))
    answered, failed = Outcome.ANSWERED, Outcome.FAILED
    assert picker.told == [("a", answered), ("a", failed), ("a", Outcome.PUSHBACK), ("a", failed), ("b", answered)]


def test_what_a_picker_makes_is_made_before_the_call() -> None:
    known, picker = fleet("a", "b"), Learning()
    layer = Balance(FakeSource(known), picker)
    for _ in range(10):
        layer.pick(call_to())
    assert picker.made == 1
    update(known, "a", "b", "c")
    known.eject(known.find("b"))
    assert picker.made == 3
    layer.pick(call_to())
    assert picker.made == 3


def test_a_picker_with_a_bug_keeps_no_news_from_anybody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Pool) -> Choose:
        raise ZeroDivisionError

    known = fleet("a")
    layers = [Balance(FakeSource(known), picker) for picker in (broken, in_turn)]
    update(known, "b")
    assert [layer.pick(call_to()).instance.id for layer in layers] == ["b", "b"]
    assert "the picker" in caplog.text


def test_a_change_while_a_picker_prepares_is_not_lost() -> None:
    """Two threads at it: the one that began with older tiers may not have the last word."""
    known = fleet("a")
    changes = iter([lambda: update(known, "b")])

    def slow(pool: Pool) -> Choose:
        next(changes, lambda: None)()
        return in_turn(pool)

    layer = Balance(FakeSource(known), slow)
    assert layer.pick(call_to()).instance.id == "b"


def test_a_layer_that_nobody_holds_is_told_nothing() -> None:
    known, picker = fleet("a"), Learning()
    layer = Balance(FakeSource(known), picker)
    del layer
    gc.collect()
    update(known, "b")
    assert picker.made == 1


def test_an_entry_point_names_a_picker_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("mine", "tests.unit.flows:in_turn", GROUP),
            EntryPoint("broken", "tests.nowhere:x", GROUP),
            EntryPoint("none", "tests.unit.flows:ORDERS", GROUP),
        ]
    )
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.select(group=group))
    assert named("mine") is in_turn
    for name, text in (("broken", "cannot be loaded"), ("none", "is not callable"), ("other", "is none of peak_ewma.*mine")):
        with pytest.raises(ConfigError, match=text):
            named(name)


# -- subsets


def to_v2(**options: Any) -> Call:
    call = call_to()
    call.subset = Subset(version="^2", **options)
    return call


def test_the_choice_from_a_subset_is_made_once_and_when_the_fleet_changes() -> None:
    known, picker = fleet("a", instance("b", version="2.0")), Learning()
    layer = Balance(FakeSource(known), picker)
    assert [layer.pick(to_v2()).instance.id for _ in range(10)] == ["b"] * 10
    assert picker.made == 2
    update(known, "a", instance("b", version="2.0"), instance("aa", version="2.1"))
    assert picker.made == 4
    assert layer.pick(to_v2()).instance.id == "aa"
    assert picker.made == 4


def test_a_new_version_of_an_instance_is_seen() -> None:
    known = fleet("a", instance("b", version="2.0"))
    layer = balance(known)
    assert layer.pick(to_v2()).instance.id == "b"
    update(known, instance("a", version="2.0"), instance("b", version="1.0"))
    assert layer.pick(to_v2()).instance.id == "a"


def test_a_change_while_the_choice_from_a_subset_is_made_is_not_lost() -> None:
    known = fleet(instance("a", version="2.0"))
    changes = iter([lambda: None, lambda: update(known, instance("b", version="2.0"))])

    def slow(pool: Pool) -> Choose:
        next(changes, lambda: None)()
        return in_turn(pool)

    layer = Balance(FakeSource(known), slow)
    assert layer.pick(to_v2()).instance.id == "a", "as it was when the call began"
    assert layer.pick(to_v2()).instance.id == "b"


def test_so_many_subsets_are_kept_ready() -> None:
    known, picker = fleet("a", "b"), Learning()
    layer = Balance(FakeSource(known), picker)
    calls = []
    for number in range(SUBSETS + 10):
        calls.append(call_to())
        calls[-1].subset = Subset(zone=f"z{number}")
    for call in calls:
        layer.pick(call)
    assert len(layer._subsets) == SUBSETS
    made = picker.made
    layer.pick(calls[-1])
    layer.pick(calls[10])
    assert picker.made == made
    layer.pick(calls[0])
    assert picker.made == made + 1, "the oldest had made room"
