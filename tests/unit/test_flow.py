"""The shells: every row is played by each of them."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from meshlib.balance.layer import Balance
from meshlib.errors import AttemptTimeout, ConnectFailed, ConnectionLost, DeadlineExceeded, NoInstances
from meshlib.flow import Call, Close, Flow, Layer, Next, Race, Send, Sleep, Wait, arun, compose, run, send
from meshlib.policies.failover import Failover
from tests.unit.flows import (
    SHELLS,
    Answer,
    AsyncScript,
    FakeSource,
    Script,
    call_to,
    fleet,
    governed,
    idle,
    in_turn,
    noted,
)

OK, SPARE = Answer(), Answer(299)


def swallowing(call: Call, proceed: Next) -> Flow:
    try:
        return (yield from proceed(call))
    except ConnectFailed:
        return SPARE


def twice(call: Call, proceed: Next) -> Flow:
    yield from proceed(call)
    return (yield from proceed(call))


def first_of_two(call: Call, proceed: Next) -> Flow:
    first = yield from proceed(call)
    yield from proceed(call)
    return first


def sleepy(call: Call, proceed: Next) -> Flow:
    yield Sleep(0.0)
    return (yield from proceed(call))


def refusing(_call: Call, _proceed: Next) -> Flow:
    raise ConnectFailed("refused below")
    yield


def strict(call: Call, proceed: Next) -> Flow:
    answer = yield from proceed(call)
    if answer.status_code >= 500:
        raise ValueError(answer.status_code)
    return answer


def waiting(timeout: float, future: Future[Any], seen: list[bool]) -> Layer:
    def layer(call: Call, proceed: Next) -> Flow:
        seen.append((yield Wait(future, timeout)))
        return (yield from proceed(call))

    return layer


def again_if_500(call: Call, proceed: Next) -> Flow:
    answer = yield from proceed(call)
    if answer.status_code == 500:
        yield Close(answer)
        answer = yield from proceed(call)
    return answer


def racing(*names: str, delay: float = 10.0) -> Layer:
    """A race between calls that differ in their paths; it is to be decided without waiting for the delay."""

    def layer(call: Call, proceed: Next) -> Flow:
        return (yield Race(proceed, [call_to(name.encode(), call.method) for name in names], delay))

    return layer


@dataclass
class Row:
    id: str
    script: list[Any]
    outcome: Any
    effects: str
    above: tuple[Layer, ...] = ()
    below: tuple[Layer, ...] = ()
    method: str = "GET"
    replayable: bool = True


ROWS = [
    Row("an answer", [Answer()], 200, "send a"),
    Row("an error status is an answer", [Answer(503)], 503, "send a"),
    Row("unsent goes on", [ConnectFailed, Answer()], 200, "send a, send b"),
    Row("unsent goes on for POST", [ConnectFailed, Answer()], 200, "send a, send b", method="POST", replayable=False),
    Row("unsent goes on until nobody is left", [ConnectFailed] * 3, ConnectFailed, "send a, send b, send c"),
    Row("lost goes on once", [ConnectionLost, Answer()], 200, "send a, send b"),
    Row("lost twice does not", [ConnectionLost, ConnectionLost], ConnectionLost, "send a, send b"),
    Row("lost, then unsent, goes on", [ConnectionLost, ConnectFailed, Answer()], 200, "send a, send b, send c"),
    Row("unsent, then lost twice", [ConnectFailed, ConnectionLost, ConnectionLost], ConnectionLost, "send a, send b, send c"),
    Row("lost POST stays", [ConnectionLost], ConnectionLost, "send a", method="POST"),
    Row("lost PUT with a stream stays", [ConnectionLost], ConnectionLost, "send a", method="PUT", replayable=False),
    Row("lost PUT goes on", [ConnectionLost, Answer()], 200, "send a, send b", method="PUT"),
    Row("a time-out stays", [AttemptTimeout], AttemptTimeout, "send a"),
    Row("a foreign error stays", [ZeroDivisionError], ZeroDivisionError, "send a"),
    Row("an interrupt stays", [KeyboardInterrupt], KeyboardInterrupt, "send a"),
    Row("a layer swallows", [ConnectFailed] * 3, 299, "send a, send b, send c", above=(swallowing,)),
    Row("a layer sends twice", [Answer(), Answer(202)], 202, "send a, send a, drop", above=(twice,)),
    Row("a layer returns the first", [Answer(201), Answer()], 201, "send a, send a, drop", above=(first_of_two,)),
    Row("the second fails", [Answer(), ZeroDivisionError], ZeroDivisionError, "send a, send a, drop", above=(twice,)),
    Row("a layer below sends twice", [Answer(), Answer(202)], 202, "send a, send a, drop", below=(twice,)),
    Row("a layer refuses an answer", [Answer(500)], ValueError, "send a, drop", above=(strict,)),
    Row("a layer below refuses an answer", [Answer(500)], ValueError, "send a, drop", below=(strict,)),
    Row("a layer below refuses the call", [], ConnectFailed, "", below=(refusing,)),
    Row("a layer closes one and tries again", [Answer(500), Answer()], 200, "send a, drop, send a", above=(again_if_500,)),
    Row("a layer below closes one", [Answer(500), Answer()], 200, "send a, drop, send a", below=(again_if_500,)),
    Row("a race of one", [Answer()], 200, "send a", above=(racing("/1"),)),
    Row("a race whose first is quick", [Answer()], 200, "send a", above=(racing("/1", "/2"),)),
    Row("a race whose first fails", [ZeroDivisionError, Answer()], 200, "send a, send a", above=(racing("/1", "/2"),)),
    Row("a race that all lose", [ZeroDivisionError, ValueError], ValueError, "send a, send a", above=(racing("/1", "/2"),)),
    Row("a race whose winner is not returned", [Answer(500)], ValueError, "send a, drop", above=(strict, racing("/1"))),
    Row("a layer sleeps", [Answer()], 200, "sleep 0, send a", above=(sleepy,)),
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row, shell: str) -> None:
    script = Script(*[Answer(one.status_code) if isinstance(one, Answer) else one for one in row.script])
    known, closed = fleet("a", "b", "c"), []
    call = call_to(method=row.method, replayable=row.replayable)
    call.on_close(lambda: closed.append(1))
    proceed = governed(known, noted(script), *row.above, below=row.below)
    if isinstance(row.outcome, int):
        response = SHELLS[shell](proceed, call, script)
        assert response.status_code == row.outcome
        assert not closed or response is SPARE, "released before the answer was closed"
        response.closed = 0
        response.close()
    else:
        with pytest.raises(row.outcome):
            SHELLS[shell](proceed, call, script)
    assert ", ".join(script.log) == row.effects
    assert idle(known)
    assert closed == [1]


@pytest.mark.parametrize("shell", SHELLS)
class TestWait:
    def test_resolved_before(self, shell: str) -> None:
        future: Future[None] = Future()
        future.set_result(None)
        seen: list[bool] = []
        SHELLS[shell](compose([waiting(60.0, future, seen)]), call_to(), Script(OK))
        assert seen == [True]

    def test_resolved_with_an_error_counts_as_resolved(self, shell: str) -> None:
        future: Future[None] = Future()
        future.set_exception(OSError())
        seen: list[bool] = []
        SHELLS[shell](compose([waiting(60.0, future, seen)]), call_to(), Script(OK))
        assert seen == [True]

    def test_cancelled_counts_as_resolved(self, shell: str) -> None:
        future: Future[None] = Future()
        future.cancel()
        seen: list[bool] = []
        SHELLS[shell](compose([waiting(60.0, future, seen)]), call_to(), Script(OK))
        assert seen == [True]

    def test_resolved_from_another_thread(self, shell: str) -> None:
        future: Future[None] = Future()
        seen: list[bool] = []
        other = threading.Thread(target=future.set_result, args=(None,))

        def start_other(call: Call, proceed: Next) -> Flow:
            other.start()
            return (yield from proceed(call))

        SHELLS[shell](compose([start_other, waiting(60.0, future, seen)]), call_to(), Script(OK))
        other.join()
        assert seen == [True]

    def test_time_runs_out_and_the_future_stays_whole(self, shell: str) -> None:
        future: Future[None] = Future()
        seen: list[bool] = []
        SHELLS[shell](compose([waiting(0.0, future, seen)]), call_to(), Script(OK))
        assert seen == [False]
        assert not future.cancelled()
        future.set_result(None)  # for a loop that has been closed: nothing complains

    def test_a_cold_start_ends_with_the_deadline(self, shell: str) -> None:
        known, future, script = fleet(), Future[None](), Script()
        source = FakeSource(known, Wait(future, 5.0))
        with pytest.raises(NoInstances, match="nobody is registered"):
            SHELLS[shell](governed(source, noted(script)), call_to(deadline=0.0), script)
        assert script.log == ["wait 0"]

    def test_a_call_whose_deadline_passed_while_waiting_is_not_sent(self, shell: str) -> None:
        known, future, script = fleet("a"), Future[None](), Script()
        future.set_result(None)
        with pytest.raises(DeadlineExceeded):
            SHELLS[shell](governed(FakeSource(known, Wait(future, 5.0))), call_to(deadline=0.0), script)
        assert idle(known)
        assert script.log == []


@pytest.mark.parametrize("shell", SHELLS)
class TestClosers:
    def test_an_answer_never_closed_but_dropped_is_the_senders_matter(self, shell: str) -> None:
        known = fleet("a")
        answer = SHELLS[shell](governed(known), call_to(), Script(Answer()))
        assert not idle(known)
        answer.close()
        answer.close()
        assert idle(known)

    def test_one_that_fails_stops_no_other(self, shell: str, caplog: pytest.LogCaptureFixture) -> None:
        ran: list[int] = []
        call = call_to()
        call.on_close(lambda: ran.append(1))
        call.on_close(lambda: 1 / 0)
        call.on_close(lambda: ran.append(2))
        SHELLS[shell](send, call, Script(Answer())).close()
        assert ran == [2, 1]
        assert "ZeroDivisionError" in caplog.text

    def test_what_a_layer_below_failover_hands_over_is_released(self, shell: str) -> None:
        taken: list[str] = []
        released: list[str] = []

        def permit(call: Call, proceed: Next) -> Flow:
            name = f"permit {len(taken)}"
            taken.append(name)
            call.on_close(lambda: released.append(name))
            return (yield from proceed(call))

        proceed = compose([Failover(), permit, Balance(FakeSource(fleet("a", "b")), in_turn)])
        SHELLS[shell](proceed, call_to(), Script(ConnectFailed, Answer())).close()
        assert sorted(released) == taken == ["permit 0", "permit 1"]

    def test_nothing_is_left_for_the_garbage_collector(self, shell: str) -> None:
        class Body:
            pass

        body = Body()
        gone = weakref.ref(body)
        gc.disable()
        try:
            SHELLS[shell](governed(fleet("a", "b")), call_to(body=body), Script(ConnectFailed, Answer())).close()
            del body
            assert gone() is None
        finally:
            gc.enable()


class Stuck(AsyncScript):
    """Never answers; ``reached`` is set when it is asked to."""

    def __init__(self) -> None:
        super().__init__(Script())
        self.reached = asyncio.Event()

    async def send(self, call: Call) -> Any:
        self.reached.set()
        await asyncio.Event().wait()


def _cancelled_in(make: Callable[[asyncio.Event], tuple[Next, Any]]) -> None:
    closed: list[int] = []

    async def scenario() -> None:
        reached = asyncio.Event()
        proceed, sender = make(reached)
        call = call_to()
        call.on_close(lambda: closed.append(1))
        task = asyncio.create_task(arun(proceed, call, sender))
        await (sender.reached if isinstance(sender, Stuck) else reached).wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert closed == [1]


class TestCancellation:
    def test_in_send(self) -> None:
        known = fleet("a", "b")
        _cancelled_in(lambda _: (governed(known), Stuck()))
        assert idle(known)
        assert not any(endpoint.ejected for endpoint in known._endpoints.values())

    @pytest.mark.parametrize("effect", [Sleep(60.0), Wait(Future(), 60.0)], ids=["sleep", "wait"])
    def test_in_other_effects(self, effect: Sleep | Wait) -> None:
        known = fleet("a")

        def make(reached: asyncio.Event) -> tuple[Next, Any]:
            def stop(call: Call, proceed: Next) -> Flow:
                reached.set()
                yield effect
                return (yield from proceed(call))

            return governed(known, below=[stop]), AsyncScript(Script())

        _cancelled_in(make)
        assert idle(known)
        if isinstance(effect, Wait):
            assert not effect.future.cancelled()

    def test_an_answer_in_hand_is_closed(self) -> None:
        known, answer = fleet("a"), Answer()

        def make(reached: asyncio.Event) -> tuple[Next, Any]:
            def stop(call: Call, proceed: Next) -> Flow:
                got = yield from proceed(call)
                reached.set()
                yield Sleep(60.0)
                return got

            return governed(known, stop), AsyncScript(Script(answer))

        _cancelled_in(make)
        assert idle(known)
        assert answer.closed == 1

    def test_a_loop_that_ends_under_a_call(self) -> None:
        known = fleet("a")
        loop = asyncio.new_event_loop()
        stuck = Stuck()
        task = loop.create_task(arun(governed(known), call_to(), stuck))
        loop.run_until_complete(stuck.reached.wait())
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
        assert idle(known)


def test_a_keyboard_interrupt_while_sleeping_unwinds_the_flow() -> None:
    known, released = fleet("a"), []

    def permit(call: Call, proceed: Next) -> Flow:
        try:
            yield Sleep(1.0)
            return (yield from proceed(call))
        finally:
            released.append(1)

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(governed(known, below=[permit]), call_to(), Script(), sleep=interrupted)
    assert released == [1]
    assert idle(known)


class Interrupted(Script):
    """The first answer that is dropped is, but whoever drops it is interrupted."""

    def drop(self, response: Any) -> None:
        super().drop(response)
        if self.log.count("drop") == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("last", [Answer, ZeroDivisionError])
def test_an_interrupt_while_answers_are_dropped_leaves_none_open(shell: str, last: Any) -> None:
    def thrice(call: Call, proceed: Next) -> Flow:
        yield from proceed(call)
        return (yield from twice(call, proceed))

    known, released = fleet("a"), []
    answers = [Answer(), Answer(), last()]
    call = call_to()
    call.on_close(lambda: released.append(1))
    with pytest.raises(KeyboardInterrupt):
        SHELLS[shell](governed(known, thrice), call, Interrupted(*answers))
    assert [answer.closed for answer in answers if isinstance(answer, Answer)] == [1] * (3 if last is Answer else 2)
    assert released == [1]
    assert idle(known)


def test_a_layer_may_answer_an_effects_error_with_another_effect() -> None:
    def stubborn(call: Call, _proceed: Next) -> Flow:
        try:
            yield Send(call)
        except ZeroDivisionError:
            return (yield Send(call))

    answer = Answer()
    assert run(compose([stubborn]), call_to(), Script(ZeroDivisionError, answer)) is answer


def test_compose_puts_the_first_outermost() -> None:
    order: list[str] = []

    def layer(name: str) -> Layer:
        def note(call: Call, proceed: Next) -> Flow:
            order.append(name)
            return (yield from proceed(call))

        return note

    run(compose([layer("one"), layer("two")]), call_to(), Script(OK))
    assert order == ["one", "two"]


class TestRace:
    """What the rows cannot show: attempts that are under way at the same time."""

    def test_the_second_overtakes_the_first_in_threads(self) -> None:
        began, release, dropped = threading.Event(), threading.Event(), threading.Event()
        sent: list[bytes] = []

        class Slow(Script):
            def send(self, call: Call) -> Any:
                if call.path == b"/1":
                    sent.append(call.path)
                    began.set()
                    assert release.wait(30)
                    return OK
                assert began.wait(30), "its thread may be later than the delay"
                sent.append(call.path)
                return SPARE

            def drop(self, response: Any) -> None:
                assert response is OK
                dropped.set()

        layer = racing("/1", "/2", delay=0.001)
        assert run(compose([layer]), call_to(), Slow()) is SPARE
        assert sent == [b"/1", b"/2"]
        release.set()
        assert dropped.wait(30), "the loser's answer is closed when it comes"

    def test_the_loser_is_cancelled_in_tasks(self) -> None:
        cancelled: list[bytes] = []

        class Slow(AsyncScript):
            async def send(self, call: Call) -> Any:
                if call.path == b"/2":
                    return SPARE
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(call.path)
                    raise

        known = fleet("a", "b")
        layer = racing("/1", "/2", delay=0.001)
        assert asyncio.run(arun(governed(known, layer), call_to(), Slow(Script()))) is SPARE
        assert cancelled == [b"/1"]
        assert len(known.find("a").in_flight) + len(known.find("b").in_flight) <= 1

    def test_cancelling_the_race_cancels_all(self) -> None:
        known, started = fleet("a", "b"), []

        class Stuck(AsyncScript):
            async def send(self, call: Call) -> Any:
                started.append(call.path)
                await asyncio.Event().wait()

        async def main() -> None:
            proceed = governed(known, racing("/1", "/2", delay=0.001))
            task = asyncio.create_task(arun(proceed, call_to(), Stuck(Script())))
            while len(started) < 2:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert idle(known)
