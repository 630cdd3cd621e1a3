"""Hedges: when a rival begins, where it goes, and what becomes of who loses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from meshlib.balance.layer import Balance
from meshlib.errors import ConfigError, ConnectFailed, ConnectionLost, NoInstances
from meshlib.events import Events
from meshlib.flow import Call, Flow, Layer, Next, arun, compose, run
from meshlib.policies import RetryBudget, hedge, retry
from meshlib.policies.base import Site
from meshlib.policies.failover import Failover
from meshlib.policies.hedge import Latencies
from meshlib.testing import FakeClock, Played, Reply, play, run_virtual
from tests.unit.flows import Answer, FakeSource, Script, call_to, fleet, idle, in_turn


class Scene:
    """Calls under policies, through the balancer, on a clock of their own."""

    def __init__(self, *policies: Any, names: str = "abc") -> None:
        self.clock, self.events, self.fleet = FakeClock(), Events(), fleet(*names)
        site = Site(service="orders", method="get", events=self.events, clock=self.clock, uniform=lambda: 0.0)
        balance = Balance(FakeSource(self.fleet), in_turn, clock=self.clock)
        self.layers = [*(policy.bind(site) for policy in policies), Failover(), balance]

    def play(self, *script: Any, **call: Any) -> Played:
        played = play(self.layers, script, call=call_to(**call), clock=self.clock)
        if played.result is not None:
            played.result.close()
        assert idle(self.fleet)
        return played

    @property
    def begun(self) -> int:
        return self.events.counts().get(("hedge.begun", "orders", "get"), 0)


def after(seconds: float, status: int = 200) -> Callable[[Call], Reply]:
    return lambda _call: Reply(status, seconds=seconds)


def at(played: Played) -> str:
    return "".join(call.endpoint.instance.id for call in played.sent if call.endpoint)


SOON = hedge(delay=0.1, budget=None)


class TestWhen:
    @pytest.mark.parametrize(("first", "second", "elapsed", "begun"), [
        (0.05, 0.0, 0.05, 0), (0.1, 0.0, 0.1, 0), (0.5, 0.1, 0.2, 1), (0.5, 0.9, 0.5, 1), (5.0, 0.0, 0.1, 1),
    ])  # fmt: skip
    def test_rows(self, first: float, second: float, elapsed: float, begun: int) -> None:
        scene = Scene(SOON)
        played = scene.play(after(first), after(second))
        assert played.elapsed == pytest.approx(elapsed)
        assert scene.begun == begun
        assert at(played) == ("ab" if begun else "a")

    @pytest.mark.parametrize(("method", "options", "hedged"), [
        ("GET", {}, True), ("PUT", {}, True), ("POST", {}, False), ("GET", {"replayable": False}, False),
        ("POST", {"headers": [(b"Idempotency-Key", b"k")]}, True),
    ])  # fmt: skip
    def test_only_what_may_be_sent_twice(self, method: str, options: dict[str, Any], hedged: bool) -> None:
        scene = Scene(SOON)
        scene.play(after(1.0), after(0.0), method=method, **options)
        assert scene.begun == hedged

    def test_more_than_two(self) -> None:
        scene = Scene(hedge(delay=0.1, attempts=3, budget=None))
        played = scene.play(after(9.0), after(9.0), after(0.0))
        assert at(played) == "abc"
        assert played.elapsed == pytest.approx(0.2)

    def test_not_after_the_deadline(self) -> None:
        scene = Scene(SOON)
        scene.play(after(0.3), deadline=1000.05)
        assert scene.begun == 0

    def test_an_attempt_that_fails_is_followed_at_once(self) -> None:
        scene = Scene(SOON)
        played = scene.play(ConnectionLost("lost"), after(0.0))
        assert (at(played), played.elapsed) == ("ab", 0.0)

    def test_an_answer_is_an_answer(self) -> None:
        assert Scene(SOON).play(after(0.0, 503)).status == 503


class TestQuantile:
    def test_none_before_the_minimum_then_what_the_share_took(self) -> None:
        scene = Scene(hedge(quantile=0.9, minimum=10, budget=None))
        for tenth in range(1, 11):
            scene.play(after(tenth / 10))
        assert scene.begun == 0
        played = scene.play(after(5.0), after(0.0))
        assert (scene.begun, at(played)) == (1, "ab")
        assert played.elapsed == pytest.approx(0.9)

    def test_a_loser_counts_with_what_it_took(self) -> None:
        """Else the slow ones would vanish from the sample, and more and more would be hedged."""
        scene = Scene(hedge(quantile=0.5, minimum=1, budget=None))
        scene.play(after(0.1))
        for _ in range(15):
            scene.play(after(1.0), after(0.0))
        assert scene.layers[0].delay == pytest.approx(1.0)  # type: ignore[attr-defined]

    def test_the_sample_slides(self) -> None:
        sample = Latencies(0.95, 1)
        for seconds in [*[9.0] * 300, *[1.0] * 256]:
            sample.add(seconds)
        assert sample.value == 1.0


class TestWhere:
    def test_to_no_instance_twice(self) -> None:
        assert at(Scene(SOON, names="ab").play(after(1.0), after(0.0))) == "ab"

    def test_one_that_stands_alone_is_not_asked_twice(self) -> None:
        scene = Scene(SOON, names="a")
        played = scene.play(after(1.0))
        assert (at(played), played.status) == ("a", 200)

    def test_its_failure_is_what_the_caller_sees(self) -> None:
        problem = ConnectionLost("lost")
        problem.__cause__ = cause = OSError()
        played = Scene(SOON, names="a").play(problem)
        assert played.error is problem
        assert problem.__cause__ is cause

    def test_nor_is_one_that_is_known_to_be_dead(self) -> None:
        scene = Scene(SOON, names="ab")
        scene.fleet.eject(scene.fleet.find("b"))
        assert at(scene.play(after(1.0))) == "a"

    def test_nobody_at_all(self) -> None:
        scene = Scene(SOON, names="")
        assert isinstance(scene.play().error, NoInstances)
        assert scene.begun == 0

    def test_failover_below(self) -> None:
        """What was never sent goes on to the next; a rival meets none of those."""
        played = Scene(SOON, names="abcd").play(ConnectFailed("refused"), after(1.0), after(0.0))
        assert at(played) == "abc"


class TestBudget:
    def test_rivals_come_out_of_it(self) -> None:
        scene = Scene(hedge(delay=0.1, budget=RetryBudget(share=0.0, per_second=2)))
        for _ in range(5):
            scene.play(after(0.2), after(0.0))
            scene.clock.now = 1000.0
        assert scene.begun == 2
        assert scene.events.counts()["hedge.refused", "orders", "get"] == 3

    def test_out_of_the_same_as_those_of_a_retry(self) -> None:
        budget = RetryBudget(share=0.0, per_second=1)
        scene = Scene(retry(2, budget=budget), hedge(delay=0.1, budget=budget))
        assert scene.play(Reply(503), Reply(200)).status == 200
        assert scene.play(after(0.2), after(0.0)).elapsed == pytest.approx(0.2)
        assert scene.begun == 0

    @pytest.mark.parametrize("policies", [(hedge(delay=0.1),), (retry(), hedge(delay=0.1))])
    def test_a_call_counts_once(self, policies: Any) -> None:
        scene = Scene(*policies)
        scene.play(Reply())
        assert sum(scene.layers[0].spending._calls) == 1  # type: ignore[attr-defined]

    def test_what_all_is_slow_is_not_called_twice(self) -> None:
        scene = Scene(hedge(delay=0.001))
        sent = 0
        for _ in range(2000):
            sent += len(scene.play(after(0.005), after(0.005)).sent)
        assert sent <= 2000 * 1.2 + 10 * 11


def test_under_a_retry_each_attempt_has_its_rivals() -> None:
    scene = Scene(retry(2, budget=None), SOON, names="abcd")
    played = scene.play(after(1.0, 503), after(0.0, 503), after(1.0), after(0.0))
    assert (at(played), played.status) == ("abcd", 200)


class TestShells:
    """Where tasks and threads race for real."""

    @staticmethod
    def permit(log: list[str]) -> Layer:
        def layer(call: Call, proceed: Next) -> Flow:
            log.append("taken")
            call.on_close(lambda: log.append("released"))
            return (yield from proceed(call))

        return layer

    def test_the_loser_is_cancelled_and_releases(self) -> None:
        log: list[str] = []
        known, answer = fleet("a", "b"), Answer()

        class Network:
            async def send(self, call: Call) -> Any:
                assert call.endpoint
                if call.endpoint.instance.id == "a":
                    try:
                        await asyncio.Event().wait()
                    finally:
                        log.append("a ended")
                return answer

            def hold(self, response: Any, call: Call) -> None:
                Script().hold(response, call)

            async def drop(self, response: Any) -> None:
                response.close()

        layers = compose([SOON.bind(Site()), self.permit(log), Failover(), Balance(FakeSource(known), in_turn)])

        async def main() -> None:
            assert await arun(layers, call_to(), Network()) is answer
            assert log == ["taken", "taken", "a ended", "released"]
            assert [len(known.find(name).in_flight) for name in "ab"] == [0, 1]
            answer.close()

        run_virtual(main())
        assert log[-1] == "released"
        assert idle(known)

    def test_a_cancelled_loser_counts_with_what_it_took(self) -> None:
        """Else the slow ones would vanish from the sample, the delay would shrink, and more and more would be hedged."""
        clock, sends = FakeClock(), [0]
        layer = hedge(quantile=0.5, minimum=1, budget=None).bind(Site(clock=clock))

        class Network:
            async def send(self, _call: Call) -> Any:
                sends[0] += 1
                await asyncio.sleep(1.0 if sends[0] == 1 else 9.0 if sends[0] % 2 == 0 else 0.5)
                return Answer()

            def hold(self, response: Any, call: Call) -> None:
                Script().hold(response, call)

            async def drop(self, response: Any) -> None:
                response.close()

        async def main() -> None:
            for _ in range(17):
                await arun(compose([layer]), call_to(), Network())

        run_virtual(main(), clock=clock)
        assert sends[0] == 1 + 2 * 16
        assert layer.delay == pytest.approx(1.5)  # type: ignore[attr-defined]

    def test_threads(self) -> None:
        known, released = fleet("a", "b"), threading.Event()
        over, log = threading.Event(), list[str]()

        class Network:
            def send(self, call: Call) -> Any:
                assert call.endpoint
                if call.endpoint.instance.id == "a":
                    released.wait(30)
                return Answer()

            def hold(self, response: Any, call: Call) -> None:
                Script().hold(response, call)

            def drop(self, response: Any) -> None:
                response.close()
                over.set()

        layers = compose([
            hedge(delay=0.0, budget=None).bind(Site()), self.permit(log), Failover(), Balance(FakeSource(known), in_turn)
        ])  # fmt: skip
        answer = run(layers, call_to(), Network())
        released.set()
        assert over.wait(30), "the loser's answer is closed when it comes"
        answer.close()
        assert log.count("taken") == log.count("released") == 2
        assert idle(known)

    def test_coroutines(self) -> None:
        began: list[int] = []

        @hedge(delay=0.05)
        async def function() -> str:
            began.append(1)
            if len(began) == 1:
                await asyncio.sleep(3600)
            return "second"

        assert run_virtual(function()) == "second"  # type: ignore[arg-type]

    def test_an_exception_of_a_function_is_not_a_reason_for_another(self) -> None:
        began: list[int] = []

        @hedge(delay=60.0)
        async def function() -> None:
            began.append(1)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            asyncio.run(function())  # type: ignore[arg-type]
        assert began == [1]


@pytest.mark.parametrize("options", [
    {"delay": -1}, {"delay": "1"}, {"delay": True}, {"quantile": 1.0}, {"quantile": 0}, {"quantile": "0.9"}, {"attempts": 1},
    {"attempts": 2.0}, {"minimum": 0}, {"minimum": 1000}, {"budget": 1}, {"quantile": 0.9, "delay": 1.0},
])  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ConfigError, match=rf"hedge\({name}=…\).*for example"):
        hedge(**options)


def test_policies_compare() -> None:
    assert hedge() == hedge(quantile=0.95)
    assert len({hedge(delay=0.1), hedge(delay=0.1), hedge()}) == 2
