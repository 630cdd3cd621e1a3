"""Sixteen threads and two hundred tasks at once, with the interpreter switching between threads as often as it can, while
the fleet changes under them."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from meshlib.balance.endpoint import Ejection, Reason
from meshlib.balance.layer import Balance
from meshlib.balance.outliers import Rules
from meshlib.balance.pickers import PICKERS, PeakEwma
from meshlib.errors import CallError
from meshlib.flow import arun, compose, run
from meshlib.policies.failover import Failover
from meshlib.settings import Settings
from meshlib.transport import AsyncEngine, Engine
from tests.unit.flows import FakeSource, call_to, fleet, idle, instance, update

THREADS, TASKS, CALLS = 16, 200, 150
NAMES = [f"i{number:02}" for number in range(12)]
LISTED = {name: instance(name) for name in NAMES}


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Storm:
    """Callers of one fleet, and somebody who changes it."""

    def __init__(self, picker: Any) -> None:
        self.fleet = fleet(*LISTED.values(), rules=Rules(interval=0.01), on_due=lambda _fleet: None)
        self.proceed = compose([Failover(), Balance(FakeSource(self.fleet), picker)])
        settings = Settings(registry="memory://unused")
        self.engine = Engine(settings, lambda _instance: httpx2.MockTransport(self.answer))
        self.async_engine = AsyncEngine(settings, lambda _instance: httpx2.MockTransport(self.aanswer))
        self.numbers, self.chance = itertools.count(), random.Random(5)
        self.seen: list[str] = []
        self.problems: list[BaseException] = []
        self.done = threading.Event()

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        number = next(self.numbers)
        if self.chance.random() < 0.02:  # by lot: tasks in step would meet every fiftieth again and again
            raise httpx2.ConnectError("refused")
        self.seen.append(request.url.host)
        return httpx2.Response(500 if not number % 17 else 200, content=b"x")

    async def aanswer(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(0)
        return self.answer(request)

    def guarded(self, work: Callable[[], None]) -> threading.Thread:
        def target() -> None:
            try:
                work()
            except BaseException as problem:
                self.problems.append(problem)

        return threading.Thread(target=target)

    def call(self) -> None:
        for _ in range(CALLS):
            run(self.proceed, call_to(body=httpx2.ByteStream(b"")), self.engine)

    def call_in_tasks(self) -> None:
        async def one() -> None:
            for _ in range(CALLS // 10):
                await arun(self.proceed, call_to(body=httpx2.ByteStream(b"")), self.async_engine)

        async def main() -> None:
            await asyncio.gather(*(one() for _ in range(TASKS)))

        asyncio.run(main())

    def change(self) -> None:
        chance = random.Random(3)
        while not self.done.is_set():
            update(self.fleet, *chance.sample(list(LISTED.values()), 8))
            endpoint = self.fleet.find(chance.choice(NAMES))
            if endpoint is not None:
                self.fleet.eject(endpoint, Ejection(chance.choice(list(Reason)), 1.0))
            for name in NAMES:  # as probes would; else nobody would be left in the end
                endpoint = self.fleet.find(name)
                if endpoint is not None and (ejection := endpoint.ejected) is not None and chance.random() < 0.8:
                    self.fleet.restore(endpoint, ejection)
            self.fleet.judge()

    def blow(self) -> None:
        callers = [self.guarded(self.call) for _ in range(THREADS)] + [self.guarded(self.call_in_tasks)]
        changer = self.guarded(self.change)
        for thread in (*callers, changer):
            thread.start()
        for thread in callers:
            thread.join(120)
        self.done.set()
        changer.join(120)


@pytest.mark.parametrize("name", PICKERS)
def test_nothing_is_lost_and_nothing_breaks(name: str) -> None:
    storm = Storm(PeakEwma() if name == "peak_ewma" else PICKERS[name])
    storm.blow()
    assert [repr(problem) for problem in storm.problems if not isinstance(problem, CallError)] == []
    assert not storm.problems, "with eight of twelve listed, somebody always answers"
    assert idle(storm.fleet)
    assert set(storm.seen) <= {one.host for one in LISTED.values()}
    assert len(storm.seen) >= THREADS * CALLS + TASKS * (CALLS // 10)


class Count(set[object]):
    """Who is in, and how many that are by a number of its own, which others may change during the ``pause``."""

    value, pause = 0, 10

    def add(self, one: object) -> None:
        if one not in self:
            super().add(one)
            self._change(1)

    def discard(self, one: object) -> None:
        if one in self:
            super().discard(one)
            self._change(-1)

    def _change(self, by: int) -> None:
        before = self.value
        for _ in range(self.pause):
            pass  # the interpreter switches between threads where a loop begins again, not within a statement
        self.value = before + by


def counting(pause: int) -> Storm:
    """One whose attempts in flight are counted in that way, of a fleet that nobody changes."""
    storm = Storm(PICKERS["least_request"])
    for endpoint in storm.fleet._endpoints.values():
        endpoint.in_flight = count = Count()
        count.pause = pause
    storm.change = lambda: None  # type: ignore[method-assign]
    return storm


def miscounted(storm: Storm) -> int:
    """At how many endpoints, now that nobody calls, the number is not 0."""
    return sum(endpoint.in_flight.value != 0 for endpoint in storm.fleet._endpoints.values())  # type: ignore[attr-defined]


def test_the_storm_would_lose_what_is_not_atomic() -> None:
    """The control: a number that is read, changed and written back, as attempts in flight might have been counted."""
    storm = counting(pause=10)
    storm.call()
    assert miscounted(storm) == 0, "where there is one thread, it counts well"
    for attempt in range(10):
        storm = counting(pause=200 << min(attempt, 6))
        storm.blow()
        if miscounted(storm):
            return
    pytest.fail("no count was ever wrong: the threads do not get in each other's way")
