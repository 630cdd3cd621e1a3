"""However calls end, nothing stays in flight and every closer runs once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.errors import CallError
from meshlib.flow import Call, arun, run
from meshlib.transport import BUFFER
from tests.unit.flows import Answer, call_to
from tests.unit.wiring import World

ENDS = ["ok", "refused", "cut", "cut in body", "timeout", "bug", "streamed", "left", "broken stream"]


class Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, end: str) -> None:
        self._failure = httpx2.ReadError("cut") if end in ("cut in body", "broken stream") else None

    def __iter__(self) -> Any:
        yield b"a"
        if self._failure:
            raise self._failure

    async def __aiter__(self) -> Any:
        await asyncio.sleep(0)
        for chunk in self:
            yield chunk
            await asyncio.sleep(0)


def handler(request: httpx2.Request) -> httpx2.Response:
    end = request.headers["x-end"]
    failures: dict[str, Exception] = {
        "refused": httpx2.ConnectError("refused"), "cut": httpx2.ReadError("cut"), "timeout": httpx2.ReadTimeout("slow"),
        "bug": ZeroDivisionError(),
    }  # fmt: skip
    if end in failures:
        raise failures[end]
    return httpx2.Response(200, stream=Body(end))


class Plan:
    """One call: how it ends, and how often its closer ran."""

    def __init__(self, end: str, method: str, closed: Counter[int], number: int) -> None:
        self.end = end
        streams = end in ("streamed", "left", "broken stream")
        self.call = call_to(
            b"/", method, body=httpx2.ByteStream(b""), headers=[(b"x-end", end.encode())],
            extensions={} if streams else {BUFFER: True},
        )  # fmt: skip
        self.call.on_close(lambda: closed.update([number]))

    def perform(self, world: World) -> None:
        try:
            response = run(world.proceed["orders"], self.call, world.engine)
        except (CallError, ZeroDivisionError):
            return
        try:
            if self.end != "left":
                response.read()
        except CallError:
            pass
        finally:
            response.close()

    async def aperform(self, world: World) -> None:
        try:
            response = await arun(world.proceed["orders"], self.call, world.async_engine)
        except (CallError, ZeroDivisionError):
            return
        try:
            if self.end != "left":
                await response.aread()
            await asyncio.sleep(0)
        except CallError:
            pass
        finally:
            await response.aclose()


async def slowly(request: httpx2.Request) -> httpx2.Response:
    await asyncio.sleep(0)
    return handler(request)


plans = st.lists(st.tuples(st.sampled_from(ENDS), st.sampled_from(["GET", "POST"])), min_size=1, max_size=8)


def check(world: World, closed: Counter[int], count: int) -> None:
    assert world.idle()
    assert closed == Counter(range(count))


@settings(deadline=None)
@given(plans)
def test_one_after_the_other(made: list[tuple[str, str]]) -> None:
    world, closed = World(handler), Counter[int]()
    for number, (end, method) in enumerate(made):
        Plan(end, method, closed, number).perform(world)
    check(world, closed, len(made))


@settings(deadline=None, max_examples=30)
@given(plans)
def test_threads(made: list[tuple[str, str]]) -> None:
    world, closed = World(handler), Counter[int]()
    plans = [Plan(end, method, closed, number) for number, (end, method) in enumerate(made)]
    threads = [threading.Thread(target=plan.perform, args=(world,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(world, closed, len(made))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ENDS), st.sampled_from(["GET", "POST"]), st.none() | st.integers(0, 12)),
                min_size=1, max_size=8))  # fmt: skip
def test_tasks_cancelled_anywhere(made: list[tuple[str, str, int | None]]) -> None:
    world, closed = World(handler), Counter[int]()
    world.async_engine.make = lambda _: httpx2.MockTransport(slowly)
    started: set[int] = set()

    async def one(number: int, end: str, method: str) -> None:
        started.add(number)
        await Plan(end, method, closed, number).aperform(world)

    async def scenario() -> None:
        tasks = [asyncio.create_task(one(number, end, method)) for number, (end, method, _) in enumerate(made)]
        for step in range(14):
            for task, (_, _, when) in zip(tasks, made, strict=True):
                if when == step:
                    task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    asyncio.run(scenario())
    assert world.idle()
    assert closed == Counter(started)


def test_the_checks_would_notice_a_leak() -> None:
    """Negative control: a sender that forgets what it was handed leaves the attempt in flight."""

    class Forgetful:
        def send(self, call: Call) -> object:
            return Answer()

        def hold(self, response: object, call: Call) -> None:
            pass

        def drop(self, response: object) -> None:
            pass

    world = World(handler)
    run(world.proceed["orders"], call_to(), Forgetful())
    assert not world.idle()
