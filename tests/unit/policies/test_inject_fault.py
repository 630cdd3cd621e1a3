"""Faults made on purpose: to whom, how often, and what they look like to those above."""

from __future__ import annotations

import logging
import math
import random
from typing import Any, Protocol

import httpx2
import pytest

from meshlib import (
    AttemptTimeout,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    Match,
    Mesh,
    Rule,
    ServiceUnavailable,
    Settings,
    Subset,
    fallback,
    get,
    inject_fault,
    retry,
    route,
    service_client,
)
from meshlib.client.stack import in_order
from meshlib.events import Event, Events
from meshlib.policies.base import Site
from meshlib.testing import FakeClock, Played, Reply, play
from tests.unit.flows import call_to


class Scene:
    def __init__(self, *policies: Any, uniform: Any = lambda: 0.5) -> None:
        self.clock, self.events, self.seen = FakeClock(), Events(), list[Event]()
        self.events.listen(self.seen.append)
        site = Site(service="orders", method="Orders.fetch", clock=self.clock, events=self.events, uniform=uniform)
        self.layers = [policy.bind(site) for policy in policies]

    def play(self, *script: Any, **call: Any) -> Played:
        return play(self.layers, script, call=call_to(**call), clock=self.clock)

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.kind, dict(event.detail)) for event in self.seen]


def test_off_unless_it_says_so() -> None:
    scene = Scene(inject_fault(abort=503))
    assert [scene.play(Reply()).status for _ in range(100)] == [200] * 100
    assert scene.told() == []


def test_a_status_looks_like_an_answer() -> None:
    scene = Scene(inject_fault(abort=503, percent=100))
    played = scene.play()
    assert (played.sent, played.status, played.result.read()) == ((), 503, b"injected fault")
    assert played.result.headers["x-mesh-fault"] == "abort"
    assert scene.told() == [("inject_fault.aborted", {"abort": "503"})]


class Custom(Exception):
    pass


class Particular(Exception):
    """As many are: it cannot be made again of what it has as ``args``."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code, self.hint = code, hint


def test_an_exception_that_cannot_be_copied_the_usual_way() -> None:
    scene = Scene(inject_fault(abort=Particular(7, hint="later"), percent=100))
    first, second = scene.play().error, scene.play().error
    assert [(type(each), str(each), each.code) for each in (first, second)] == [(Particular, "7: later", 7)] * 2  # type: ignore[union-attr]
    assert first is not second


@pytest.mark.parametrize(
    ("abort", "kind"),
    [(ConnectFailed, ConnectFailed), ("ConnectionLost", ConnectionLost), ("AttemptTimeout", AttemptTimeout),
     (Custom, Custom), (Custom("mine"), Custom)],
)  # fmt: skip
def test_exceptions(abort: Any, kind: type[Exception]) -> None:
    scene = Scene(inject_fault(abort=abort, percent=100))
    first, second = scene.play().error, scene.play().error
    assert type(first) is kind
    assert first is not second
    assert str(first) == ("mine" if isinstance(abort, Custom) else "GET orders: an injected fault")


def test_a_delay() -> None:
    scene = Scene(inject_fault(delay=0.5, percent=100))
    played = scene.play(Reply())
    assert (played.status, played.slept) == (200, (0.5,))
    assert scene.told() == [("inject_fault.delayed", {"seconds": 0.5})]
    (sent,) = scene.play(Reply(), attempt_timeout=2.0).sent
    assert sent.attempt_timeout == 1.5
    both = Scene(inject_fault(delay=0.5, abort="ConnectFailed", percent=100)).play()
    assert (type(both.error), both.slept) == (ConnectFailed, (0.5,))


@pytest.mark.parametrize(("limits", "slept"), [({"deadline": 1000.2}, 0.2), ({"attempt_timeout": 0.3}, 0.3),
                                               ({"deadline": 1000.4, "attempt_timeout": 0.3}, 0.3), ({"deadline": 999.0}, 0.0)])  # fmt: skip
def test_a_delay_beyond_the_time_is_an_instance_that_is_too_slow(limits: dict[str, float], slept: float) -> None:
    played = Scene(inject_fault(delay=0.5, percent=100)).play(**limits)
    assert isinstance(played.error, AttemptTimeout)
    assert not played.error.unsent
    assert played.slept == (pytest.approx(slept),)


CANARY = Subset(labels={"track": "canary", "zone": "a"})


@pytest.mark.parametrize(
    ("options", "call", "hit"),
    [
        ({"when": Match(path="/orders/*")}, {"path": b"/orders/7"}, True),
        ({"when": Match(path="/orders/*")}, {"path": b"/users/7"}, False),
        ({"when": Match(headers={"x-game-day": "1"})}, {"headers": [(b"X-Game-Day", b"1")]}, True),
        ({"when": Match(headers={"x-game-day": "1"})}, {}, False),
        ({"when": Match(arguments={"customer": "7"})}, {"arguments": {"customer": 7}}, True),
        ({"labels": {"track": "canary"}}, {"subset": CANARY}, True), ({"labels": {"track": "stable"}}, {"subset": CANARY}, False),
        ({"labels": {"track": "canary"}}, {}, False), ({"labels": {"track": "canary", "zone": "b"}}, {"subset": CANARY}, False),
    ],
)  # fmt: skip
def test_which_calls(options: Any, call: Any, hit: bool) -> None:
    assert Scene(inject_fault(abort=503, percent=100, **options)).play(Reply(), **call).status == (503 if hit else 200)


@pytest.mark.parametrize("percent", [0.5, 10, 50, 99])
def test_how_often(percent: float) -> None:
    """Chi-square with one degree of freedom: beyond 10.83 once in a thousand times, were the seed not fixed."""
    scene, count = Scene(inject_fault(abort=OSError, percent=percent), uniform=random.Random(7).random), 20_000
    hits = sum(scene.play(Reply()).error is not None for _ in range(count))
    expected = count * percent / 100
    assert (hits - expected) ** 2 / expected + (hits - expected) ** 2 / (count - expected) < 10.83


def test_the_negative_control_of_another_share() -> None:
    scene, count, expected = Scene(inject_fault(abort=OSError, percent=11), uniform=random.Random(7).random), 20_000, 2000
    hits = sum(scene.play(Reply()).error is not None for _ in range(count))
    assert (hits - expected) ** 2 / expected + (hits - expected) ** 2 / (count - expected) > 10.83
    assert math.isclose(hits, 2200, rel_tol=0.1)


def test_those_above_take_it_for_the_remote() -> None:
    lots = iter([0.0, 0.5, 0.9])  # a fault, a pause, none
    scene = Scene(retry(attempts=3), inject_fault(abort=503, percent=50), uniform=lambda: next(lots))
    played = scene.play(Reply())
    assert (played.status, len(played.sent), len(played.slept)) == (200, 1, 1)
    scene = Scene(fallback(value="instead"), inject_fault(abort=ConnectionLost, percent=100))
    assert scene.play().result.value == "instead"


def test_its_place() -> None:
    order = in_order([inject_fault(abort=503), route(Rule(to=Subset(zone="a"))), retry()])
    assert [each.kind for each in order] == ["retry", "route", "inject_fault"]


def test_functions() -> None:
    @inject_fault(abort=503, percent=100)
    def read() -> str:
        return "read"

    with pytest.raises(ServiceUnavailable, match="answered 503, which was injected"):
        read()


def test_it_is_said_when_it_is_put_in_place(caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "meshlib.policies.inject_fault"]

    with caplog.at_level(logging.WARNING):
        Scene(inject_fault(abort=503))
        assert said() == []
        Scene(inject_fault(delay=0.5, abort=ConnectFailed, percent=2.5))
    assert said() == [
        "faults are injected into 2.5 % of the calls of orders Orders.fetch: late by 0.5 s and ended by ConnectFailed"
    ]


def test_declared_methods_and_subsets() -> None:
    @route(Rule(when=Match(path="/canary"), to="canary"), subsets={"canary": Subset(labels={"track": "canary"})})
    @inject_fault(abort=503, percent=100, labels={"track": "canary"})
    @service_client("orders")
    class Orders(Protocol):
        @get("/canary")
        def canary(self) -> str: ...
        @get("/stable")
        def stable(self) -> str: ...
        @get("/canary")
        def raw(self) -> httpx2.Response: ...

    mock = httpx2.MockTransport(lambda _: httpx2.Response(200, json="fine"))
    with Mesh(Settings(registry="static://orders=127.0.0.1:1"), transport=lambda _: mock) as mesh:
        orders = mesh.client(Orders)
        assert orders.stable() == "fine"
        with pytest.raises(ServiceUnavailable, match="injected fault"):
            orders.canary()
        assert orders.raw().headers["x-mesh-fault"] == "abort"
        with mesh.http("orders", policies=[inject_fault(abort=418, percent=100)]) as http:
            assert http.get("/").status_code == 418


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: inject_fault(), "inject_fault(abort=) (from code): there is neither a delay nor an abort; for example abort=503"),
        (lambda: inject_fault(abort=200), "200 is not a status from 400 to 599, an exception, or one of ConnectFailed"),
        (lambda: inject_fault(abort="Nothing"), "'Nothing' is not a status"),
        (lambda: inject_fault(abort=KeyboardInterrupt), "is not a status"),  # type: ignore[arg-type]
        (lambda: inject_fault(abort=ServiceUnavailable), "is not a status"),
        (lambda: inject_fault(abort=Particular), "Particular cannot be made of a message alone"),
        (lambda: inject_fault(abort=UnicodeDecodeError), "UnicodeDecodeError cannot be made of a message alone"),
        (lambda: inject_fault(delay=-1), "-1 is not a number of seconds"),
        (lambda: inject_fault(abort=503, percent=101), "101 is not in 0..100"),
        (lambda: inject_fault(abort=503, when="/orders"), "'/orders' is not a Match"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_bad_options(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


def test_policies_compare() -> None:
    one = inject_fault(abort=503, when=Match(path="/a"), labels={"a": "b"})
    assert len({one, inject_fault(abort=503, when=Match(path="/a"), labels={"a": "b"})}) == 1
