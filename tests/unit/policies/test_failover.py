"""Failover: deadlines, and what the caller gets to see. What goes on to whom is in the rows of test_flow."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.balance.layer import Balance
from meshlib.errors import AttemptTimeout, CallError, ConnectFailed, ConnectionLost, DeadlineExceeded
from meshlib.flow import Call, Flow, Next, compose, run
from meshlib.policies.failover import Failover
from tests.unit.flows import Answer, FakeSource, Script, call_to, fleet, idle, in_turn


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def slow(self, seconds: float) -> Any:
        """A layer that each attempt takes ``seconds`` in."""

        def layer(call: Call, proceed: Next) -> Flow:
            self.now += seconds
            return (yield from proceed(call))

        return layer


def play(script: Script, call: Call, *, seconds: float = 0.0, names: str = "abc") -> Any:
    clock = Clock()
    known = fleet(*names)
    layers = [Failover(), Balance(FakeSource(known), in_turn, clock=clock), clock.slow(seconds)]
    try:
        return run(compose(layers), call, script)
    finally:
        assert idle(known) or script.outcomes == []


TIMEOUTS = {"connect": 1.0, "read": 2.0, "write": None}


def test_what_is_left_of_the_deadline_bounds_the_next_attempt() -> None:
    script = Script(ConnectFailed, Answer())
    play(script, call_to(deadline=102.0, extensions={"timeout": TIMEOUTS, "x": 1}), seconds=1.5)
    assert script.calls[0].extensions["timeout"] == {"connect": 1.0, "read": 2.0, "write": 2.0, "pool": 2.0}
    assert script.calls[1].extensions == {"timeout": {"connect": 0.5, "read": 0.5, "write": 0.5, "pool": 0.5}, "x": 1}


def test_no_attempt_after_the_deadline() -> None:
    script = Script(ConnectFailed)
    with pytest.raises(DeadlineExceeded) as caught:
        play(script, call_to(deadline=101.0), seconds=1.5)
    assert isinstance(caught.value.__cause__, ConnectFailed)
    assert [one.id for one in caught.value.tried] == ["a"]
    assert caught.value.instance.id == "a"


def test_without_a_deadline_timeouts_stay() -> None:
    script = Script(ConnectFailed, Answer())
    play(script, call_to(extensions={"timeout": TIMEOUTS}), seconds=999.0)
    assert script.calls[1].extensions == {"timeout": TIMEOUTS}


@pytest.mark.parametrize("names", ["a", "abc"])
def test_the_failure_of_the_last_instance_is_what_the_caller_sees(names: str) -> None:
    made = [ConnectFailed(f"at {name}") for name in names]
    cause = OSError("refused")
    made[-1].__cause__ = cause
    with pytest.raises(ConnectFailed) as caught:
        play(Script(*made), call_to(), names=names)
    assert caught.value is made[-1]
    assert caught.value.__cause__ is cause
    assert [one.id for one in caught.value.tried] == list(names)


def test_an_unsent_time_out_goes_on() -> None:
    """No connection of the pool came free: nothing was sent."""
    unsent = AttemptTimeout("pool")
    unsent.unsent = True
    script = Script(unsent, Answer())
    play(script, call_to(method="POST", replayable=False))
    assert script.log == ["send a", "send b"]


def test_the_body_is_handed_on_untouched() -> None:
    body = iter([b"only once"])
    script = Script(ConnectFailed, Answer())
    play(script, call_to(method="POST", body=body, replayable=False))
    assert [call.body for call in script.calls] == [body, body]
    assert next(body) == b"only once"


def test_no_instance_is_tried_twice() -> None:
    script = Script(*[ConnectFailed] * 3)
    with pytest.raises(ConnectFailed):
        play(script, call_to())
    assert script.log == ["send a", "send b", "send c"]


def test_an_error_that_no_balancer_marked_is_not_ours_to_repeat() -> None:
    script = Script(ConnectFailed)
    with pytest.raises(ConnectFailed):
        run(compose([Failover()]), call_to(), script)
    assert script.log == ["send -"]


def test_other_call_errors_pass() -> None:
    script = Script(CallError("broken request"))
    with pytest.raises(CallError):
        play(script, call_to())
    assert script.log == ["send a"]


def test_a_lost_call_says_all_it_tried() -> None:
    with pytest.raises(ConnectionLost) as caught:
        play(Script(ConnectFailed, ConnectionLost, ConnectionLost), call_to())
    assert [one.id for one in caught.value.tried] == ["a", "b", "c"]
