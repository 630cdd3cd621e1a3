"""pybreaker's listeners at a circuit."""

from __future__ import annotations

from typing import Any

import pybreaker
import pytest

from meshlib import ConnectFailed, ServerError, breakers_of, circuit_breaker
from meshlib.policies.base import Site
from meshlib.testing import FakeClock, Reply, play


class Listener(pybreaker.CircuitBreakerListener):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.seen: list[Any] = []

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.heard.append(f"{cb.name}: {func.__name__}{args if func.__name__ == 'work' else ''}")

    def success(self, cb: Any) -> None:
        self.heard.append(f"success {cb.success_counter}")

    def failure(self, cb: Any, exc: BaseException) -> None:
        self.seen.append(exc)
        self.heard.append(f"{type(exc).__name__} {cb.fail_counter} of {cb.fail_max}")

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        assert cb.state.name == cb.current_state == new_state.name
        self.heard.append(f"{old_state.name} -> {new_state.name}")


def test_a_service() -> None:
    listener, clock = Listener(), FakeClock()
    policy = circuit_breaker(minimum=4, probes=1, listeners=[listener])
    layer: Any = policy.bind(Site(service="orders", method="Orders.fetch", clock=clock))
    for answer in (Reply(), Reply(404), Reply(500), Reply(429), ConnectFailed("no")):
        play([layer], [answer], clock=clock)
    assert listener.heard == [
        "orders.Orders.fetch: fetch", "success 1", "orders.Orders.fetch: fetch", "success 2",
        "orders.Orders.fetch: fetch", "ServerError 1 of 2", "orders.Orders.fetch: fetch",
        "orders.Orders.fetch: fetch", "closed -> open", "ConnectFailed 2 of 2",
    ]  # fmt: skip
    assert isinstance(listener.seen[0], ServerError)
    assert str(listener.seen[0]) == "orders.Orders.fetch answered 500"
    listener.heard.clear()
    play([layer], [], clock=clock)
    clock.advance(5.0)
    play([layer], [Reply()], clock=clock)
    assert listener.heard == ["open -> half-open", "orders.Orders.fetch: fetch", "half-open -> closed", "success 0"]


def test_a_function_and_what_they_may_ask() -> None:
    listener = Listener()

    @circuit_breaker(minimum=2, probes=2, open_for=7.0, listeners=[listener])
    def work(number: int) -> int:
        return 10 // number

    assert work(5) == 2
    with pytest.raises(ZeroDivisionError):
        work(0)
    assert [said.rpartition(".")[2] for said in listener.heard] == [
        "work: work(5,)", "success 1", "work: work(0,)", "closed -> open", "ZeroDivisionError 1 of 1",
    ]  # fmt: skip
    (breaker,) = breakers_of(work)
    views: list[Any] = []

    class Asking(Listener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            views.append(cb)

    asked = circuit_breaker(probes=2, open_for=7.0, listeners=[Asking()]).breaker_at(Site(service="orders"))
    layer: Any = asked.policy.bind(asked.site)
    layer.breaker.open()
    (view,) = views
    assert (view.name, view.reset_timeout, view.success_threshold, len(view.listeners)) == ("orders", 7.0, 2, 1)
    view.close()
    assert layer.breaker.state == "closed"
    view.open()
    assert layer.breaker.state == "open"
    heard = len(views)
    breaker.disable()
    assert listener.heard[-1] == "open -> closed", "pybreaker has no other word for it"
    breaker.enable()
    assert listener.heard[-1] == "open -> closed"
    assert len(views) == heard


def test_one_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Listener):
        def success(self, cb: Any) -> None:
            raise ZeroDivisionError

    class Little:
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            """It hears of nothing else."""

    listener = Listener()
    layer = circuit_breaker(listeners=(Broken(), Little(), listener)).bind(Site(service="orders"))
    assert play([layer], [Reply()]).status == 200
    assert listener.heard[-1] == "success 1"
    assert "failed at success of orders" in caplog.text


def test_a_listener_that_cannot_be_hashed() -> None:
    class Odd(Listener):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return self is other

    odd = Odd()
    assert hash(circuit_breaker(listeners=[odd])) == hash(circuit_breaker(listeners=[odd]))
    assert circuit_breaker(listeners=[odd]) != circuit_breaker(listeners=[Odd()])
