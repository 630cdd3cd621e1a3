"""Retries: what is tried again, where, when, and how much of it there may be."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import uuid
import weakref
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
import tenacity

from meshlib.balance.layer import Balance
from meshlib.errors import (
    AttemptTimeout,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    NoInstances,
    NotFound,
    ServiceUnavailable,
)
from meshlib.events import Events
from meshlib.flow import Call, Flow, Layer, Next, arun, compose
from meshlib.model import ServiceUrl
from meshlib.policies import RetryBudget, retry
from meshlib.policies.base import Commons, Site
from meshlib.policies.failover import Failover
from meshlib.testing import FakeClock, Played, Reply, play
from tests.unit.flows import SHELLS, Answer, AsyncScript, FakeSource, Script, call_to, fleet, governed, idle, in_turn

WALL = datetime(2030, 1, 1, tzinfo=UTC)


class Scene:
    """Calls under a policy, through the balancer, on a clock of their own; chance always says one half."""

    def __init__(self, policy: Any, *, names: str = "abc", below: Layer | None = None) -> None:
        self.clock, self.events, self.fleet = FakeClock(), Events(), fleet(*names)
        self.site = Site(service="orders", method="get", events=self.events, clock=self.clock, wall=WALL.timestamp,
                         uniform=lambda: 0.5)  # fmt: skip
        balance = Balance(FakeSource(self.fleet), in_turn, clock=self.clock)
        self.layers = [policy.bind(self.site), *([below] if below else []), Failover(), balance]

    def play(self, *script: Any, **call: Any) -> Played:
        played = play(self.layers, script, call=call_to(**call), clock=self.clock)
        if played.result is not None:
            played.result.close()
        assert idle(self.fleet)
        return played


def at(played: Played) -> str:
    return "".join(call.endpoint.instance.id for call in played.sent if call.endpoint)


def lost() -> ConnectionLost:
    return ConnectionLost("lost")


def refused() -> ConnectFailed:
    return ConnectFailed("refused")


def slow() -> AttemptTimeout:
    return AttemptTimeout("slow")


def full() -> AttemptTimeout:
    """No connection of the pool came free: nothing was sent."""
    problem = AttemptTimeout("full")
    problem.unsent = True
    return problem


def ok(_call: Call) -> Reply:
    return Reply(200)


def busy(_call: Call) -> Reply:
    return Reply(503)


def later(_call: Call) -> Reply:
    return Reply(429, {"retry-after": "0"})


class TestWhatIsTriedAgain:
    @pytest.mark.parametrize(("method", "first", "again"), [
        ("GET", busy, True), ("GET", Reply(502), True), ("GET", Reply(504), True), ("GET", Reply(500), False),
        ("GET", later, True), ("GET", Reply(429), False), ("GET", Reply(404), False), ("GET", ok, False),
        ("GET", lost(), True), ("GET", slow(), True), ("GET", full(), True),
        ("POST", busy, False), ("POST", later, False), ("POST", lost(), False), ("POST", slow(), False), ("POST", full(), True),
        ("PUT", busy, True), ("DELETE", lost(), True), ("PATCH", busy, False),
        ("GET", DeadlineExceeded("over"), False), ("GET", ZeroDivisionError(), False), ("GET", NoInstances("none"), False),
    ])  # fmt: skip
    def test_rows(self, method: str, first: Any, again: bool) -> None:
        played = Scene(retry(attempts=2)).play(first, ok, method=method)
        assert len(played.sent) == 1 + again

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_a_body_that_cannot_be_sent_twice(self, method: str) -> None:
        played = Scene(retry()).play(busy, method=method, replayable=False)
        assert (played.status, len(played.sent)) == (503, 1)

    def test_a_request_with_a_key_of_its_own(self) -> None:
        played = Scene(retry(idempotency_key=True)).play(busy, ok, method="POST", headers=[(b"idempotency-key", b"mine")])
        assert [call.headers for call in played.sent] == [[(b"idempotency-key", b"mine")]] * 2

    def test_other_statuses(self) -> None:
        policy = retry(statuses=[500], attempts=2)
        assert len(Scene(policy).play(Reply(500), ok).sent) == 2
        assert len(Scene(policy).play(Reply(503), ok).sent) == 1

    def test_three_attempts_and_the_last_answer_as_it_is(self) -> None:
        last = Reply(503)
        first, second = Reply(503), Reply(502)
        scene = Scene(retry())
        played = play(scene.layers, [first, second, last], clock=scene.clock)
        assert played.result is last
        assert (first.closed, second.closed, last.closed) == (True, True, False)
        assert sum(len(endpoint.in_flight) for endpoint in scene.fleet._endpoints.values()) == 1
        last.close()
        assert idle(scene.fleet)

    def test_the_last_error_says_what_was_tried(self) -> None:
        played = Scene(retry()).play(Reply(503), slow(), lost())
        assert isinstance(played.error, ConnectionLost)
        assert played.error.__notes__ == [
            "attempt 1 at a: answered 503; again after 0.025 s",
            "attempt 2 at b: AttemptTimeout('slow'); again after 0.05 s",
            "no further attempt: 3 were made",
        ]
        assert [one.id for one in played.error.tried] == ["a", "b", "c"]

    def test_events(self) -> None:
        scene = Scene(retry(attempts=2))
        heard: list[Any] = []
        scene.events.listen(heard.append)
        scene.play(ok)
        assert heard == [], "nothing to say of what works"
        scene.play(busy, lost())
        assert [event.kind for event in heard] == ["retry.again", "retry.gave_up"]
        assert heard[0].detail == {"attempt": 1, "pause": 0.025, "what": "answered 503"}
        assert heard[1].detail == {"attempts": 2, "why": "2 were made"}


class TestKeys:
    def test_one_for_all_attempts_of_a_call(self) -> None:
        scene = Scene(retry(idempotency_key=True))
        one, other = (scene.play(busy, ok, method="POST", headers=[(b"X-A", b"1")]) for _ in range(2))
        keys = [dict(call.headers)[b"Idempotency-Key"].decode() for call in (*one.sent, *other.sent)]
        assert keys[0] == keys[1] != keys[2] == keys[3]
        assert keys[0][0] == keys[0][-1] == '"', "a string of structured fields"
        assert uuid.UUID(keys[0][1:-1]).version == 4
        assert one.sent[0].headers[0] == (b"X-A", b"1"), "a Host stays the first"

    @pytest.mark.parametrize("method", ["GET", "PUT"])
    def test_not_where_none_is_needed(self, method: str) -> None:
        assert Scene(retry(idempotency_key=True)).play(ok, method=method).sent[0].headers == []

    def test_the_control_without_it_a_post_is_not_repeated(self) -> None:
        assert len(Scene(retry()).play(busy, ok, method="POST").sent) == 1


class TestWhere:
    def test_all_tried_ones_are_excluded(self) -> None:
        assert at(Scene(retry(attempts=3)).play(busy, busy, ok)) == "abc"

    def test_when_all_were_tried_any_but_the_last(self) -> None:
        assert at(Scene(retry(attempts=4), names="ab").play(busy, busy, busy, ok)) == "abab"

    def test_the_only_one_again(self) -> None:
        assert at(Scene(retry(attempts=3), names="a").play(busy, busy, ok)) == "aaa"

    def test_an_exact_instance_again(self) -> None:
        target = ServiceUrl("orders", instance="b")
        assert at(Scene(retry(attempts=2)).play(busy, ok, target=target)) == "bb"

    def test_failover_goes_on_below_and_does_not_multiply(self) -> None:
        """What was never sent goes on at once, within one attempt; what was sent is for the retry alone."""
        played = Scene(retry(attempts=2)).play(refused(), lost(), ok)
        assert at(played) == "abc"
        assert played.slept == (0.025,), "one pause: the refusal was gone round without one"
        played = Scene(retry(attempts=2, budget=None)).play(lost(), lost())
        assert len(played.sent) == 2

    def test_the_control_without_a_retry_failover_sends_again(self) -> None:
        known, script = fleet("a", "b", "c"), Script(ConnectionLost, Answer())
        SHELLS["run"](governed(known), call_to(), script).close()
        assert script.log == ["send a", "send b"]

    def test_whom_nobody_else_would_call_a_retry_does_not_either(self) -> None:
        scene = Scene(retry(attempts=2), names="ab")
        scene.fleet.eject(scene.fleet.find("b"))
        assert at(scene.play(busy, ok)) == "aa", "b is known to be dead"


class TestWhen:
    def test_full_jitter_doubling_up_to_the_cap(self) -> None:
        played = Scene(retry(attempts=8, budget=None)).play(*[busy] * 8)
        assert played.slept == (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)

    def test_any_number_of_attempts(self) -> None:
        played = Scene(retry(attempts=1000, budget=None)).play(*[busy] * 1000)
        assert played.slept[-1] == 1.0
        assert len(played.sent) == 1000

    @pytest.mark.parametrize(("text", "pause"), [
        ("3", 3.0), ("0", 0.025), ("nonsense", 0.025), (format_datetime(WALL.replace(second=4), usegmt=True), 4.0),
        (format_datetime(WALL.replace(year=2029), usegmt=True), 0.025),
    ])  # fmt: skip
    def test_retry_after(self, text: str, pause: float) -> None:
        assert Scene(retry()).play(Reply(503, {"retry-after": text}), ok).slept == (pause,)

    @pytest.mark.parametrize(("left", "attempts"), [(3.1, 2), (3.0, 1), (0.5, 1)])
    def test_not_beyond_the_deadline(self, left: float, attempts: int) -> None:
        played = Scene(retry()).play(Reply(503, {"retry-after": "3"}), ok, deadline=1000.0 + left)
        assert len(played.sent) == attempts
        assert played.elapsed <= left
        assert played.status == (200 if attempts == 2 else 503)

    def test_not_for_ever_without_one(self) -> None:
        scene = Scene(retry())
        assert scene.play(Reply(503, {"retry-after": "31"})).slept == ()
        assert scene.play(Reply(503, {"retry-after": "30"}), ok).slept == (30.0,)

    def test_an_error_at_the_deadline_is_raised_as_it_is(self) -> None:
        played = Scene(retry(base=1.0)).play(slow(), deadline=1000.1)
        assert isinstance(played.error, AttemptTimeout)
        assert played.error.__notes__ == ["no further attempt: the deadline is 0.1 s away, the pause would be 0.5 s"]


class TestTenacity:
    @pytest.mark.parametrize(("policy", "slept"), [
        (retry(wait=tenacity.wait_fixed(2)), (2.0, 2.0)),
        (retry(wait=tenacity.wait_incrementing(1, 1), attempts=4), (1.0, 2.0, 3.0)),
        (retry(wait=tenacity.wait_exponential(multiplier=1), stop=tenacity.stop_after_attempt(4)), (1.0, 2.0, 4.0)),
        (retry(wait=tenacity.wait_fixed(2), stop=tenacity.stop_after_delay(5)), (2.0, 2.0, 2.0)),
        (retry(wait=tenacity.wait_fixed(2), stop=tenacity.stop_before_delay(5)), (2.0, 2.0)),
        (retry(2, wait=tenacity.wait_fixed(2), stop=tenacity.stop_before_delay(5)), (2.0,)),
        (retry(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(9)), ()),
        (retry(wait=tenacity.wait_fixed(1) + tenacity.wait_fixed(2)), (3.0, 3.0)),
        (retry(wait=lambda state: state.attempt_number * 5.0), (5.0, 10.0)),
    ])  # fmt: skip
    def test_stop_and_wait(self, policy: retry, slept: tuple[float, ...]) -> None:
        played = Scene(policy).play(*[busy] * 10)
        assert played.slept == slept
        assert played.status == 503

    def test_they_see_time_pass_on_the_clock_of_the_site(self) -> None:
        played = Scene(retry(stop=tenacity.stop_after_delay(1.0), base=0.0)).play(*[Reply(503, seconds=0.4)] * 10)
        assert len(played.sent) == 3

    @pytest.mark.parametrize(("condition", "script", "sent"), [
        (tenacity.retry_if_exception_type(ConnectionLost), [lost(), ok], 2),
        (tenacity.retry_if_exception_type(ConnectionLost), [slow()], 1),
        (tenacity.retry_if_exception_type(ConnectionLost), [busy], 1),
        (tenacity.retry_if_result(lambda reply: reply.status == 200), [ok, ok, ok], 3),
        (tenacity.retry_if_exception_type(AttemptTimeout) | tenacity.retry_if_result(lambda r: r.status == 500),
         [slow(), Reply(500), ok], 3),
        (tenacity.retry_if_exception_message(match="slow"), [slow(), lost()], 2),
        (lambda state: state.attempt_number < 2, [busy, busy], 2),
        (tenacity.retry_never, [lost()], 1),
    ])  # fmt: skip
    def test_conditions(self, condition: Any, script: list[Any], sent: int) -> None:
        assert len(Scene(retry(retry=condition)).play(*script).sent) == sent

    def test_no_condition_makes_it_unsafe(self) -> None:
        assert len(Scene(retry(retry=tenacity.retry_always)).play(lost(), method="POST").sent) == 1

    def test_no_exception_is_kept(self) -> None:
        """Its traceback leads to the layer: it would wait for the garbage collector."""
        states: list[Any] = []

        def stop(state: Any) -> bool:
            states.append(state)
            assert state.outcome.exception() is not None
            return False

        Scene(retry(stop=stop, attempts=2)).play(lost(), ok)
        assert states[0].outcome is None

    def test_it_is_not_loaded_before_it_is_needed(self) -> None:
        code = "import sys; from meshlib import retry; assert 'tenacity' not in sys.modules, 'loaded'"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestBudget:
    NOTHING = RetryBudget(share=0.0, per_second=0)

    def test_without_any_the_first_answer_is_the_last(self) -> None:
        scene = Scene(retry(budget=self.NOTHING))
        assert scene.play(busy).status == 503
        assert scene.events.counts() == {("retry.gave_up", "orders", "get"): 1}

    def test_the_error_says_so(self) -> None:
        assert Scene(retry(budget=self.NOTHING)).play(lost()).error.__notes__ == [  # type: ignore[union-attr]
            "no further attempt: the retry budget is used up"
        ]

    @pytest.mark.parametrize(("rate", "most"), [(1000, 1.2), (40, 1.25), (5, 3.0)])
    def test_a_backend_that_always_fails(self, rate: int, most: float) -> None:
        """Twenty seconds of calls, each of which fails and would be tried three times."""
        scene = Scene(retry(base=0.0))
        sent = sum(self.second(scene, rate) for _ in range(20))
        assert sent <= rate * 20 * most + (most > 1.2) * 10
        assert sent >= min(rate * 20 * 1.19, rate * 20 * 3), "and what the budget has is used"

    def test_the_control_without_a_budget_it_gets_three_times_as_much(self) -> None:
        assert self.second(Scene(retry(base=0.0, budget=None)), 100) == 300

    @staticmethod
    def second(scene: Scene, rate: int) -> int:
        sent = 0
        for _ in range(rate):
            scene.clock.advance(1.0 / rate)
            sent += len(scene.play(busy, busy, busy).sent)
        return sent

    def test_one_for_all_methods_of_a_service(self) -> None:
        commons, clock = Commons(), FakeClock()
        site = {"commons": commons, "clock": clock, "uniform": lambda: 0.0}
        policy = retry(2, budget=RetryBudget(share=0.0, per_second=1))
        one, other, elsewhere = (
            policy.bind(Site(service=service, method=method, **site))  # type: ignore[arg-type]
            for service, method in (("orders", "get"), ("orders", "list"), ("stock", "get"))
        )
        assert len(play([one], [busy, ok], clock=clock).sent) == 2
        assert len(play([other], [busy, ok], clock=clock).sent) == 1
        assert len(play([elsewhere], [busy, ok], clock=clock).sent) == 2

    def test_of_two_functions_each_has_its_own(self) -> None:
        calls: list[int] = []

        def fails() -> None:
            calls.append(1)
            raise OSError

        policy = retry(2, base=0.0, budget=RetryBudget(share=0.0, per_second=1))
        for function in (policy(fails), policy(lambda: fails())):
            with pytest.raises(OSError):
                function()
        assert len(calls) == 4


class TestPermits:
    """What layers below take for an attempt."""

    @staticmethod
    def permit(log: list[str]) -> Layer:
        def layer(call: Call, proceed: Next) -> Flow:
            log.append("taken")
            call.on_close(lambda: log.append("released"))
            return (yield from proceed(call))

        return layer

    @pytest.mark.parametrize("shell", SHELLS)
    @pytest.mark.parametrize("first", [ConnectionLost, Answer(503)], ids=["error", "answer"])
    def test_are_released_when_that_attempt_is_over(self, shell: str, first: Any) -> None:
        log: list[str] = []
        known, script = fleet("a", "b"), Script(first, Answer(200))
        script.log = log
        layers = governed(known, retry(base=0.0).bind(Site()), self.permit(log))
        answer = SHELLS[shell](layers, call_to(), script)
        dropped = ["drop"] if isinstance(first, Answer) else []
        assert log == ["taken", "send a", *dropped, "released", "taken", "send b"]
        answer.close()
        assert log[-1] == "released"
        assert log.count("released") == 2
        assert idle(known)

    @pytest.mark.parametrize("problem", [GeneratorExit, KeyboardInterrupt, asyncio.CancelledError])
    def test_whatever_ends_it(self, problem: type[BaseException]) -> None:
        log: list[str] = []
        played = play([retry().bind(Site()), self.permit(log)], [problem()])
        assert isinstance(played.error, problem)
        assert log == ["taken", "released"]

    @pytest.mark.parametrize("shell", SHELLS)
    @pytest.mark.parametrize("option", ["retry", "stop", "wait"])
    def test_whatever_is_raised_by_what_judges_the_answer(self, shell: str, option: str) -> None:
        def judge(*_: Any) -> bool:
            raise ZeroDivisionError

        log: list[str] = []
        answer = Answer(503)
        layers = governed(fleet("a"), retry(**{option: judge}).bind(Site()), self.permit(log))  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            SHELLS[shell](layers, call_to(), Script(answer))
        assert (log, answer.closed) == (["taken", "released"], 1)

    def test_a_cancelled_pause_holds_nothing(self) -> None:
        log: list[str] = []

        async def main() -> None:
            script = Script(Answer(503))
            layers = compose([retry(base=60.0).bind(Site(uniform=lambda: 1.0)), self.permit(log)])
            task = asyncio.ensure_future(arun(layers, call_to(), AsyncScript(script)))  # type: ignore[arg-type]
            while "released" not in log:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert log == ["taken", "released"]


class TestFunctions:
    @staticmethod
    def failing(*problems: BaseException, calls: list[int]) -> Any:
        left = list(problems)

        def function() -> int:
            calls.append(1)
            if left:
                raise left.pop(0)
            return 503

        return function

    @pytest.mark.parametrize(("problem", "tried"), [
        (OSError(), 2), (ZeroDivisionError(), 2), (lost(), 2), (DeadlineExceeded("inner"), 2), (ConfigError("x", "bad"), 1),
        (NoInstances("none"), 1), (NotFound("no", status=404), 1), (ServiceUnavailable("no", status=503), 2),
        (KeyboardInterrupt(), 1),
    ])  # fmt: skip
    def test_exceptions_are_failures(self, problem: BaseException, tried: int) -> None:
        calls: list[int] = []
        function = retry(2, base=0.0)(self.failing(problem, calls=calls))
        if tried == 1:
            with pytest.raises(type(problem)):
                function()
        else:
            assert function() == 503, "and any value is an answer"
        assert len(calls) == tried

    def test_coroutines(self) -> None:
        calls: list[int] = []
        function = self.failing(OSError(), calls=calls)

        @retry(2, base=0.0)
        async def coroutine() -> int:
            return function()  # type: ignore[no-any-return]

        assert asyncio.run(coroutine()) == 503  # type: ignore[arg-type]
        assert len(calls) == 2

    def test_what_a_condition_says_of_values(self) -> None:
        values = iter([None, None, 7])
        poll = retry(5, base=0.0, retry=tenacity.retry_if_result(lambda value: value is None))(lambda: next(values))
        assert poll() == 7

    def test_try_again(self) -> None:
        calls: list[int] = []
        function = retry(3, base=0.0, retry=tenacity.retry_never)(self.failing(tenacity.TryAgain(), calls=calls))
        assert function() == 503

    def test_the_last_error_has_notes(self) -> None:
        with pytest.raises(OSError, match="two") as caught:
            retry(2, base=0.0)(self.failing(OSError("one"), OSError("two"), calls=[]))()
        assert caught.value.__notes__ == [
            "attempt 1: OSError('one'); again after 0 s", "no further attempt: 2 were made",
        ]  # fmt: skip


@pytest.mark.parametrize("options", [
    {"attempts": 0}, {"attempts": True}, {"attempts": "3"}, {"attempts": 2.5}, {"stop": 3}, {"wait": 1.0}, {"retry": "always"},
    {"statuses": [200]}, {"statuses": 503}, {"statuses": ["503"]}, {"base": -1}, {"cap": "2"}, {"base": True}, {"budget": 0.2},
])  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"retry\({name}=…\).*for example"):
        retry(**options)


@pytest.mark.parametrize("options", [{"share": 2}, {"share": "1"}, {"share": True}, {"per_second": -1}, {"per_second": 0.5}])
def test_bad_budgets(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"RetryBudget\(.*for example"):
        RetryBudget(**options)


def test_policies_compare() -> None:
    assert retry(3) == retry(attempts=3, statuses=[504, 503, 502])
    assert len({retry(), retry(), retry(2)}) == 2


def test_nothing_is_left_for_the_garbage_collector() -> None:
    class Body:
        pass

    body = Body()
    gone = weakref.ref(body)
    known = fleet("a", "b")
    layers = governed(known, retry(2, base=0.0, stop=tenacity.stop_never).bind(Site()))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ConnectionLost):
            SHELLS["run"](layers, call_to(body=body), Script(ConnectionLost, ConnectionLost))
        del body
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("code", [None, "ok", 503])
def test_a_functions_value_may_have_anything_in_place_of_a_status(code: object) -> None:
    class Foreign:
        status_code = code

    @retry(attempts=3)
    def work() -> Foreign:
        made.append(Foreign())
        return made[-1]

    made: list[Foreign] = []
    assert work() is made[0]
    assert len(made) == 1
