"""Places: against a model step by step, and under threads, tasks and cancellations at once."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib import Refused, bulkhead
from meshlib.flow import Call, arun, compose, run
from meshlib.policies.base import Site
from meshlib.policies.bulkhead import Permits, Place, Waiter
from tests.unit.flows import Answer, AsyncScript, Script, call_to


class Model:
    """Places as a number, and a queue of names."""

    def __init__(self, limit: int) -> None:
        self.free, self.queue, self.holding = limit, deque[int](), list[int]()

    def match(self) -> None:
        while self.free and self.queue:
            self.free -= 1
            self.holding.append(self.queue.popleft())


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("tjlg"), st.integers(0, 9)), max_size=100))
@settings(max_examples=300)
def test_in_lockstep(limit: int, steps: list[tuple[str, int]]) -> None:
    permits, model = Permits(limit), Model(limit)
    waiting: dict[int, Waiter] = {}
    held: dict[int, Place] = {}
    for name, (step, which) in enumerate(steps):
        if step == "t":
            place = permits.take()
            assert (place is not None) == (model.free > 0 and not model.queue)
            if place is not None:
                held[name] = place
                model.free -= 1
                model.holding.append(name)
        elif step == "j":
            waiting[name] = permits.join()
            model.queue.append(name)
        elif step == "l" and waiting:
            leaving = sorted(waiting)[which % len(waiting)]
            place = permits.leave(waiting.pop(leaving))
            assert (place is not None) == (leaving in model.holding)
            if place is None:
                model.queue.remove(leaving)
            else:
                held[leaving] = place
        elif step == "g" and held:
            giving = sorted(held)[which % len(held)]
            for _ in range(2):  # a second time does nothing
                held[giving]()
            del held[giving]
            model.holding.remove(giving)
            model.free += 1
        model.match()
        assert permits.free == model.free
        assert {name for name, waiter in waiting.items() if waiter.woken.done()} == {*waiting} & {*model.holding}


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


THREADS, TASKS, CALLS, LIMIT = 8, 60, 40, 5


class Storm:
    """Callers in threads and in tasks, of which some are cancelled at any time; whatever is answered is closed later."""

    def __init__(self, seed: int) -> None:
        self.layer: Any = bulkhead(LIMIT, wait=0.02).bind(Site())
        self.proceed = compose([self.layer])
        self.chance = random.Random(seed)
        self.lock = threading.Lock()
        self.inside = self.most = self.passed = self.refused = self.cancelled = 0
        self.problems: list[BaseException] = []

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.passed += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1

    def call(self) -> None:
        for _ in range(CALLS):
            try:
                answer = run(self.proceed, call_to(), Inside(self))
            except (Refused, ZeroDivisionError):
                continue
            self.leave()
            answer.close()

    async def acall(self) -> None:
        for _ in range(CALLS // 4):
            try:
                answer = await arun(self.proceed, call_to(), AsyncInside(self))
            except (Refused, ZeroDivisionError):
                continue
            try:
                await asyncio.sleep(self.chance.random() / 1000)
            finally:
                self.leave()
                answer.close()

    async def tasks(self) -> None:
        tasks = [asyncio.create_task(self.acall()) for _ in range(TASKS)]
        for task in tasks[::2]:
            await asyncio.sleep(self.chance.choice([0.0, self.chance.random() / 500]))  # else most would have ended
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        self.cancelled = sum(isinstance(end, asyncio.CancelledError) for end in ends)
        self.problems += [end for end in ends if isinstance(end, Exception)]

    def guarded(self, work: Any) -> threading.Thread:
        def target() -> None:
            try:
                work()
            except BaseException as problem:
                self.problems.append(problem)

        return threading.Thread(target=target)

    def blow(self) -> None:
        callers = [self.guarded(self.call) for _ in range(THREADS)]
        callers.append(self.guarded(lambda: asyncio.run(self.tasks())))
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join(60)
            assert not thread.is_alive(), "somebody waits for a place that never comes"


class Inside(Script):
    """An attempt: now and then it fails."""

    def __init__(self, storm: Storm) -> None:
        super().__init__(Answer())
        self._storm = storm

    def send(self, call: Call) -> Any:
        self._storm.enter()
        if self._storm.chance.random() < 0.2:
            self._storm.leave()
            raise ZeroDivisionError
        return super().send(call)


class AsyncInside(AsyncScript):
    def __init__(self, storm: Storm) -> None:
        super().__init__(Inside(storm))

    async def send(self, call: Call) -> Any:
        await asyncio.sleep(0)
        return self._script.send(call)  # nothing is awaited between coming in and the answer: cancellation leaves none inside


@pytest.mark.parametrize("seed", range(3))
def test_never_more_than_the_limit_and_every_place_comes_back(seed: int) -> None:
    storm = Storm(seed)
    storm.blow()
    assert storm.problems == []
    assert 2 <= storm.most <= LIMIT
    assert storm.passed > 100
    assert storm.cancelled > 0
    assert storm.inside == 0
    assert storm.layer.permits.free == LIMIT
    assert not storm.layer.permits._waiters


def test_the_negative_control_places_that_come_too_late_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without giving back what comes when its owner has just left, places are lost."""
    leave = Permits.leave

    def forgetful(self: Permits, waiter: Any) -> Place | None:
        leave(self, waiter)
        return None

    monkeypatch.setattr(Permits, "leave", forgetful)
    storm = Storm(1)
    storm.blow()
    assert storm.layer.permits.free < LIMIT


def test_the_negative_control_without_the_bulkhead() -> None:
    storm = Storm(1)
    storm.proceed = compose([])
    storm.blow()
    assert storm.most > LIMIT
