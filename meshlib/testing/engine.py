"""The engines of a mesh for tests: the real ones, and the effects of layers performed in virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, NoReturn

import httpx2

from meshlib.background import BACKGROUND
from meshlib.flow import Aside, Call, Course, Effect, Race, Sender, Sleep, Wait, araced, arun, raced, run
from meshlib.settings import Settings
from meshlib.testing.timeline import POLL, Node, Timeline
from meshlib.transport import AsyncEngine, Engine, MakeAsyncTransport, MakeTransport


class VirtualEngine(Engine):
    """Performs calls in the caller's thread, and their pauses on a :class:`Timeline`."""

    def __init__(self, settings: Settings, make: MakeTransport, timeline: Timeline) -> None:
        super().__init__(settings, make, timeline.clock)
        self._timeline = timeline

    def send(self, call: Call) -> httpx2.Response:
        """See :class:`meshlib.flow.Sender`."""
        self._timeline.settle()
        with self._timeline.busy():
            return super().send(call)

    def perform(self, effect: Effect) -> Any:
        """Any effect but Send and Close."""
        if isinstance(effect, Sleep):
            return self._timeline.wait(effect.seconds)
        if isinstance(effect, Wait):
            return self._timeline.wait(effect.timeout, effect.future)
        if isinstance(effect, Race):
            return raced(effect, _Course(effect, self, self._timeline))
        assert isinstance(effect, Aside), effect
        return self._aside(effect)

    def _aside(self, aside: Aside) -> bool:
        """In a thread; it is waited for until it waits itself, or is done: so what it sends has been sent."""
        node = _begin(self._timeline, lambda: self.drop(run(aside.proceed, aside.call, self)))
        while self._timeline.works(node):
            time.sleep(POLL)
        return True


def _begin(timeline: Timeline, work: Callable[[], object]) -> Node:
    # Apart: whoever begins it is busy himself, until he waits.
    node, context = timeline.open(apart=True), contextvars.copy_context()

    def in_thread() -> None:
        timeline.adopt(node)
        try:
            work()
        except Exception:  # noqa: BLE001, S110 - nobody is there to hear of it: what is done aside is dropped
            pass
        finally:
            timeline.close(node)

    threading.Thread(target=context.run, args=(in_thread,), name="meshlib-testing-call", daemon=True).start()
    return node


class _Course(Course):
    """A race between threads in virtual time: the next begins when the delay has passed on the timeline."""

    def __init__(self, race: Race, sender: Sender, timeline: Timeline) -> None:
        super().__init__(race, sender)
        self._timeline, self._ended = timeline, Future[None]()

    def begin(self, call: Call) -> None:
        """See :class:`meshlib.flow.Course`."""
        _begin(self._timeline, lambda: self._run(call))

    def _run(self, call: Call) -> None:
        self._attempt(call)
        ended, self._ended = self._ended, Future[None]()
        ended.set_result(None)

    def wait(self, timeout: float | None) -> tuple[Any, BaseException | None] | None:
        """The next end, None when there is none in ``timeout`` seconds."""
        until = math.inf if timeout is None else self._timeline.clock() + timeout
        while True:
            ended = self._ended
            if (end := super().wait(0)) is not None:
                return end
            if not self._timeline.wait(until - self._timeline.clock(), ended):
                return None
            # What ended may have been fetched by the wait before, which was quicker than to be told.


class VirtualAsyncEngine(AsyncEngine):
    """The same for asyncio."""

    def __init__(self, settings: Settings, make: MakeAsyncTransport, timeline: Timeline) -> None:
        super().__init__(settings, make, timeline.clock)
        self._timeline = timeline

    def _limit(self, _seconds: float) -> AbstractAsyncContextManager[object]:
        return nullcontext()  # nothing trickles here, and real seconds mean nothing

    async def send(self, call: Call) -> httpx2.Response:
        """See :class:`meshlib.flow.AsyncSender`."""
        if asyncio._get_running_loop() is None:
            only_asyncio()
        self._timeline.settle()
        with self._timeline.busy():
            return await super().send(call)

    async def perform(self, effect: Effect) -> Any:
        """Any effect but Send and Close."""
        if asyncio._get_running_loop() is None:
            only_asyncio()
        if isinstance(effect, Sleep):
            return await self._timeline.await_(effect.seconds)
        if isinstance(effect, Wait):
            return await self._timeline.await_(effect.timeout, effect.future)
        if isinstance(effect, Race):
            return await araced(effect, self, self._first)
        assert isinstance(effect, Aside), effect
        return BACKGROUND.begin(lambda: self._aside(effect))

    async def _aside(self, aside: Aside) -> None:
        node = self._timeline.open(apart=True)
        self._timeline.adopt(node)
        try:
            await self.drop(await arun(aside.proceed, aside.call, self))
        finally:
            self._timeline.close(node)

    async def _first(self, tasks: set[asyncio.Task[Any]], delay: float | None) -> Iterable[asyncio.Task[Any]]:
        ended = Future[None]()

        def end(_: asyncio.Task[Any]) -> None:
            if not ended.done():
                ended.set_result(None)

        for task in tasks:
            task.add_done_callback(end)
        try:
            await self._timeline.await_(math.inf if delay is None else delay, ended)
        finally:
            for task in tasks:
                task.remove_done_callback(end)
        return [task for task in tasks if task.done()]


def only_asyncio() -> NoReturn:
    """Say that the event loop is another than asyncio's."""
    raise RuntimeError(
        "meshlib's async clients need asyncio, and this runs under another event loop (trio?): with anyio's plugin, have a "
        "fixture `anyio_backend` that returns 'asyncio'"
    )
