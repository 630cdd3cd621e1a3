"""Balance: who gets the attempt, and what the fleet learns of it."""

from __future__ import annotations

import pytest

from meshlib.balance.layer import LAST_RESORTS, Balance
from meshlib.errors import AttemptTimeout, ConnectFailed, ConnectionLost, NoInstances
from meshlib.flow import compose, run
from meshlib.model import ServiceUrl, Status
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
