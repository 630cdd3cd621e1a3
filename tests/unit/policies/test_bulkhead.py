"""The bulkhead as a layer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from importlib import import_module
from typing import Any

import pytest

from meshlib import BulkheadFull, ConfigError, bulkhead, timeout
from meshlib.events import Event, Events
from meshlib.flow import Call, Flow, Next, Wait, arun, compose
from meshlib.policies.base import Site
from meshlib.policies.bulkhead import Permits
from meshlib.testing import FakeClock, Reply, VirtualLoop, play
from tests.unit.flows import SHELLS, Answer, AsyncScript, Script, call_to


class Place:
    def __init__(self, limit: int, **options: Any) -> None:
        self.clock, self.events, self.seen = FakeClock(), Events(), list[Event]()
        self.events.listen(self.seen.append)
        site = Site(service="orders", method="Orders.fetch", clock=self.clock, events=self.events)
        self.layer: Any = bulkhead(limit, **options).bind(site)

    def play(self, *script: Any, **options: Any) -> Any:
        return play([self.layer], script, clock=self.clock, **options)

    @property
    def free(self) -> int:
        return self.layer.permits.free


def test_no_more_than_the_limit_until_answers_are_closed() -> None:
    place = Place(2)
    answers = [place.play(Reply()).result for _ in range(2)]
    error = place.play(Reply()).error
    assert isinstance(error, BulkheadFull)
    assert str(error) == "2 calls of orders.Orders.fetch are under way, no more are allowed"
    assert error.retry_after is None
    assert [(event.kind, dict(event.detail)) for event in place.seen] == [("bulkhead.refused", {"limit": 2})]
    answers[0].close()
    answers[0].close()
    assert place.free == 1, "a second close gives nothing back"
    assert place.play(Reply()).status == 200


@pytest.mark.parametrize("problem", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("shell", SHELLS)
def test_released_however_it_ends(shell: str, problem: type[BaseException]) -> None:
    place = Place(1)
    with pytest.raises(problem):
        SHELLS[shell](compose([place.layer]), call_to(), Script(problem))
    assert place.free == 1
    answer = SHELLS[shell](compose([place.layer]), call_to(), Script(Answer()))
    assert place.free == 0
    answer.close()
    assert place.free == 1
    assert place.seen == []


def test_a_failed_attempt_holds_nothing_while_a_layer_above_repeats() -> None:
    place = Place(1)

    def repeating(call: Call, proceed: Next) -> Flow:
        try:
            return (yield from proceed(call))
        except OSError:
            assert place.free == 1
            return (yield from proceed(call))

    played = play([repeating, place.layer], [OSError(), Reply()], clock=place.clock)
    assert played.status == 200
    assert place.free == 0
    played.result.close()
    assert place.free == 1


def test_waiting_in_vain() -> None:
    place = Place(1, wait=0.5)
    place.play(Reply())
    played = place.play(Reply())
    assert isinstance(played.error, BulkheadFull)
    assert "and none ended within 0.5 s" in str(played.error)
    assert (played.waited, played.elapsed) == (1, 0.5)
    assert not place.layer.permits._waiters, "nobody is left in the queue"


@pytest.mark.parametrize(("left", "elapsed"), [(0.25, 0.25), (0.0, 0.0), (-1.0, 0.0)])
def test_the_deadline_bounds_waiting(left: float, elapsed: float) -> None:
    place = Place(1, wait=10.0)
    place.play(Reply())
    played = place.play(call=call_to(deadline=place.clock.now + left))
    assert isinstance(played.error, BulkheadFull)
    assert played.elapsed == elapsed


def test_a_place_that_comes_while_one_waits() -> None:
    place = Place(1, wait=10.0)
    first = place.play(Reply()).result

    def ends(wait: Any) -> bool:
        place.clock.advance(2.0)
        first.close()
        return wait.future.done()

    assert place.play(Reply(), wait=ends).status == 200
    assert place.seen[-1].kind == "bulkhead.waited"
    assert place.seen[-1].detail == {"seconds": 2.0}
    assert place.free == 0


def test_a_place_that_comes_just_when_the_time_is_over() -> None:
    place = Place(1, wait=10.0)
    first = place.play(Reply()).result

    def too_late(wait: Any) -> bool:
        first.close()
        return False

    assert place.play(Reply(), wait=too_late).status == 200


def test_a_place_that_comes_just_when_its_owner_is_cancelled() -> None:
    place = Place(1, wait=10.0)
    first = place.play(Reply()).result

    def cancelled(wait: Any) -> bool:
        first.close()
        raise asyncio.CancelledError

    assert isinstance(place.play(Reply(), wait=cancelled).error, asyncio.CancelledError)
    assert place.free == 1


def test_tasks_pass_in_the_order_of_coming() -> None:
    place, order = Place(2, wait=60.0), list[int]()
    proceed = compose([place.layer])

    class Slow(AsyncScript):
        async def send(self, call: Call) -> Any:
            order.append(int(call.path[1:]))
            await asyncio.sleep(1.0)
            return await super().send(call)

    async def one(number: int) -> None:
        answer = await arun(proceed, call_to(b"/%d" % number), Slow(Script(Answer())))
        answer.close()

    async def main() -> None:
        tasks = []
        for number in range(8):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.01)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(place.clock)) as runner:
        runner.run(main())
    assert order == [0, 1, 2, 4, 5, 6, 7]
    assert place.free == 2


def test_functions_and_generators() -> None:
    @bulkhead(1)
    def numbers(upto: int) -> Iterator[int]:
        yield from range(upto)

    first = numbers(3)
    assert next(first) == 0
    with pytest.raises(BulkheadFull, match="1 calls of .*numbers are under way"):
        next(numbers(1))
    first.close()  # type: ignore[attr-defined]
    assert list(numbers(2)) == [0, 1]

    @bulkhead(1)
    def inner(deeper: bool) -> str:
        return inner(False) if deeper else "done"

    assert inner(False) == "done"
    with pytest.raises(BulkheadFull):
        inner(True)
    assert inner(False) == "done"


class Impatient(Future[Any]):
    """Nobody may wait for it who would wait for himself."""

    def result(self, timeout: float | None = None) -> Any:
        assert self.done(), "this thread waits for itself"
        return super().result(timeout)


def test_one_who_waits_may_be_collected_just_as_his_place_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = import_module("meshlib.policies.bulkhead")
    place = Place(1, wait=60.0)
    holder = place.play(Reply()).result
    monkeypatch.setattr(policy, "promise", Impatient)
    abandoned = compose([place.layer])(call_to())
    assert isinstance(next(abandoned), Wait)

    class Collecting(policy.Place):  # type: ignore[misc]
        """The collector comes when objects are made."""

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            abandoned.close()

    monkeypatch.setattr(policy, "Place", Collecting)
    holder.close()
    assert (place.free, place.layer.permits.waiting) == (1, 0)


def test_a_child_process_begins_anew() -> None:
    permits = Permits(2)
    held = permits.take()
    permits.forked()
    assert permits.free == 2
    assert held is not None
    held()
    assert permits.free == 2, "a call of the parent's gives the child nothing"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bulkhead(0), "bulkhead(limit=) (from code): 0 is not a number from 1 to 1000000; for example bulkhead(20)"),
        (lambda: bulkhead("5"), "'5' is not a number from 1"),  # type: ignore[arg-type]
        (lambda: bulkhead(5, wait=-0.5), "bulkhead(wait=) (from code): -0.5 is not a number of seconds"),
    ],
)
def test_bad_options(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


def test_policies_compare() -> None:
    assert bulkhead(5, wait=1.0) == bulkhead(limit=5, wait=1.0)
    assert bulkhead(5) != bulkhead(6)
    assert len({bulkhead(5), bulkhead(5)}) == 1


def test_on_a_function_below_a_timeout() -> None:
    """The layers work on copies of the call, which release together what they hold."""

    @timeout(60.0)
    @bulkhead(1)
    def plain() -> str:
        return "done"

    @timeout(60.0)
    @bulkhead(1)
    async def awaited() -> str:
        return "done"

    assert [plain(), plain()] == ["done"] * 2

    async def both() -> list[str]:
        return [await awaited(), await awaited()]  # type: ignore[misc]

    assert asyncio.run(both()) == ["done"] * 2
