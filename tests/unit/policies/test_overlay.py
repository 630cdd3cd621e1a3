"""Documents over code: whose field wins, what is off, what has nothing to set; and shadows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from meshlib import (
    BulkheadFull,
    ConfigError,
    ConnectionLost,
    RateLimited,
    Refused,
    bulkhead,
    circuit_breaker,
    rate_limit,
    retry,
    timeout,
)
from meshlib.client.stack import Stack
from meshlib.events import Event, Events
from meshlib.flow import Call, Flow, Layer, Next, Sleep, arun, compose, run
from meshlib.policies.base import Policy, Site
from meshlib.policies.overlay import SHADOW, Given, Origin, Overlaid, Rules, overlay
from meshlib.policies.shadow import Shadowed, shadowed
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import Answer, AsyncScript, Script, call_to

CODE = (retry(3, base=0.1), bulkhead(3))


def over(*places: Given, code: Sequence[Policy] = CODE, mode: str = "enforce") -> Overlaid:
    return overlay(code, [Rules(f"place{at}", given) for at, given in enumerate(places)], mode)


@pytest.mark.parametrize(("places", "policies", "told"), [
    ((), CODE, ""),
    (({},), CODE, ""),
    (({"retry": {"attempts": 5}},), (bulkhead(3), retry(5, base=0.1)), "retry(attempts)"),
    (({"retry": {"attempts": 5}}, {"retry": {"cap": 1.0}}), (bulkhead(3), retry(5, base=0.1, cap=1.0)), "retry(attempts, cap)"),
    (({"retry": {"attempts": 5}}, {"retry": {"attempts": 1}}), (bulkhead(3), retry(1, base=0.1)), "retry(attempts)"),
    (({"retry": None},), (bulkhead(3),), "retry is off"),
    (({"retry": {"attempts": 5}}, {"retry": None}), (bulkhead(3),), "retry is off"),
    (({"retry": None}, {"retry": {"attempts": 2}}), (bulkhead(3), retry(2, base=0.1)), "retry(attempts)"),
    (({"timeout": {"seconds": 2}},), (*CODE, timeout(2)), "timeout(seconds)"),
    (({"timeout": {"attempt": 2}},), CODE, "timeout has nothing to set here"),
    (({"timeout": None},), CODE, ""),
])  # fmt: skip
def test_a_document_over_code(places: Any, policies: tuple[Policy, ...], told: str) -> None:
    found = over(*places)
    assert found.policies == policies
    assert str(found.origin(7, "kv", "enforce")) == f"policy document, version 7 (kv, enforce): {told or 'nothing here'}"


def test_what_contradicts_the_code_is_told_with_the_path_of_the_place() -> None:
    with pytest.raises(ConfigError, match=r"place0\.timeout\.attempt .* longer than the whole call's 1 s"):
        over({"timeout": {"seconds": 1}}, code=[timeout(5, attempt=2)])


def test_an_origin_says_why_it_does_not_hold() -> None:
    assert "NOT IN FORCE: too small" in str(Origin(version=1, source="disk", problem="too small"))


# -- shadow


def test_in_shadow_the_code_stays_in_force_and_only_what_refuses_is_tried() -> None:
    found = over({"retry": {"attempts": 9}, "bulkhead": {"limit": 1, "wait": 5}, "timeout": {"seconds": 1}}, mode=SHADOW)
    assert found.policies == (Shadowed(bulkhead(1, wait=0.0)), *CODE)
    assert (found.set, found.idle, found.off) == ((("bulkhead", ("limit", "wait")),), ("retry", "timeout"), ())
    assert over({"retry": None}, mode=SHADOW).policies == CODE


def shadow_world(policy: Policy) -> tuple[Layer, Events, list[Event], FakeClock]:
    events, clock, heard = Events(), FakeClock(), list[Event]()
    events.listen(heard.append)
    return shadowed(policy).bind(Site(service="orders", method="get", events=events, clock=clock)), events, heard, clock


def test_a_shadow_counts_what_it_would_have_refused_and_refuses_nothing() -> None:
    layer, events, heard, clock = shadow_world(rate_limit("2/s", wait=10))
    statuses = [play([layer], [Reply()], clock=clock).status for _ in range(5)]
    assert statuses == [200] * 5
    assert events.counts() == {("shadow.refused", "orders", "get"): 3}
    assert heard[0].detail["policy"] == "rate_limit"
    assert heard[0].detail["retry_after"] == pytest.approx(1.0)
    clock.advance(1.01)
    assert play([layer], [Reply()], clock=clock).slept == ()
    assert len(heard) == 3


def test_the_negative_control_without_the_shadow_it_refuses() -> None:
    clock = FakeClock()
    layer = rate_limit("2/s").bind(Site(clock=clock))
    errors = [type(play([layer], [Reply()], clock=clock).error) for _ in range(3)]
    assert errors == [type(None), type(None), RateLimited]


def test_a_shadow_of_a_circuit_opens_and_lets_calls_through() -> None:
    layer, events, heard, clock = shadow_world(circuit_breaker(0.5, minimum=3, open_for=5.0))
    failing = [play([layer], [ConnectionLost("lost")], clock=clock).error for _ in range(5)]
    assert {type(error) for error in failing} == {ConnectionLost}
    assert play([layer], [Reply()], clock=clock).status == 200
    assert events.counts() == {("shadow.refused", "orders", "get"): 3}
    assert heard[-1].detail["policy"] == "circuit_breaker"


def test_a_shadow_sees_what_the_one_in_force_then_refuses() -> None:
    events = Events()
    site = Site(service="orders", events=events)
    stack = Stack(site, [bulkhead(1)], compose([]))
    stack.prepare(over({"bulkhead": {"limit": 1}}, code=stack.policies, mode=SHADOW).policies)()
    script = Script(Answer(), Answer())
    held = run(stack.proceed, call_to(), script)
    with pytest.raises(BulkheadFull):
        run(stack.proceed, call_to(), script)
    held.close()
    assert events.counts() == {("shadow.refused", "orders", ""): 1, ("bulkhead.refused", "orders", ""): 1}
    run(stack.proceed, call_to(), script).close()  # both have given their places back


def test_a_shadow_of_asyncio_calls() -> None:
    layer, events, _, _ = shadow_world(bulkhead(1))

    async def story() -> None:
        answers = await asyncio.gather(*(_call(layer) for _ in range(3)))
        for answer in answers:
            answer.close()

    asyncio.run(story())
    assert events.counts() == {("shadow.refused", "orders", "get"): 2}


async def _call(layer: Layer) -> Any:
    return await arun(compose([layer]), call_to(), AsyncScript(Script(Answer())))


@dataclass(frozen=True)
class gate(Policy):
    """Refuses after what is below it has answered, or never gets that far; ``late`` says which."""

    kind: ClassVar[str] = "gate"
    refuses: ClassVar[bool] = True
    late: bool = False

    def bind(self, site: Site) -> Layer:
        def layer(call: Call, proceed: Next) -> Flow:
            if self.late:
                answer = yield from proceed(call)
                answer.close()
            yield Sleep(0.0)
            raise Refused("no")

        return layer


def test_what_is_refused_below_a_shadow_is_refused() -> None:
    layer, events, _, _ = shadow_world(bulkhead(5))

    def below(call: Call, proceed: Next) -> Flow:
        raise Refused("by somebody else")
        yield

    assert isinstance(play([layer, below], []).error, Refused)
    assert not events.counts()


def test_a_shadow_never_sends_twice() -> None:
    layer, events, _, _ = shadow_world(gate())
    assert len(play([layer], [Reply(), Reply()]).sent) == 1
    assert events.counts()
    layer, events, _, _ = shadow_world(gate(late=True))
    assert len(play([layer], [Reply(), Reply()]).sent) == 1
    assert not events.counts()


def test_other_failures_go_through_a_shadow() -> None:
    layer, _, _, _ = shadow_world(bulkhead(1))
    assert isinstance(play([layer], [OSError("broken")]).error, OSError)
    assert play([layer], [Reply()]).status == 200


# -- stacks


def test_a_stack_is_prepared_and_nothing_changes_before_the_commit() -> None:
    stack = Stack(Site(), CODE, compose([]))
    before = stack.proceed
    commit = stack.prepare([retry(9)], Origin(version=1, source="kv"))
    assert (stack.proceed, stack.origin) == (before, None)
    assert set(stack.effective) == set(CODE)
    commit()
    assert stack.proceed is not before
    assert (stack.effective, stack.origin) == ((retry(9),), Origin(version=1, source="kv"))


def test_what_stays_the_same_keeps_its_state() -> None:
    clock = FakeClock()
    stack = Stack(Site(clock=clock), [rate_limit("1/h")], compose([]))
    run(stack.proceed, call_to(), Script(Answer())).close()
    for given in ({"retry": {"attempts": 2}}, {"rate_limit": {"wait": 0.0}}, {}):
        stack.prepare(over(given, code=stack.policies).policies)()
        with pytest.raises(RateLimited):
            run(stack.proceed, call_to(), Script(Answer()))
    stack.prepare(over({"rate_limit": {"limits": "2/h"}}, code=stack.policies).policies)()
    run(stack.proceed, call_to(), Script(Answer())).close()
