"""A network between a client and the servers of a fake cluster, as an httpx2 transport: refused, cut off, stalled, slow.

Servers are called ``host0``, ``host1``…; a server is a coroutine function of (link, request), which waits for news only
through its link: so whatever befalls the network, befalls the question that is held.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import httpx2

Serve = Callable[["Link", httpx2.Request], Awaitable[httpx2.Response]]

REFUSED, SILENT, STALLED = "refused", "silent", "stalled"
"""New connections are refused and old ones reset; both are dropped without a word, old ones for good; both are open and
nothing is read until it is over (SIGSTOP)."""


class Pulse:
    """Wakes all that wait for news."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout: float | None = None) -> None:
        """Until the next news, or for ``timeout`` seconds."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future
        finally:
            self._waiting.discard(future)


class Link:
    """One question and its answer. ``held`` while the server waits for news, or the network for better times; ``given_up``
    once the client has hung up on it; ``outlived`` when it waits for something that the server has forgotten since it last
    told the client."""

    def __init__(self, wire: Wire, host: int) -> None:
        self.wire, self.host = wire, host
        self.broken = ""
        self.held = self.given_up = self.outlived = False

    async def gate(self) -> None:
        """Wait until bytes get through. Raises what a client sees of a reset."""
        while True:
            if self.broken == REFUSED:
                raise httpx2.ReadError("connection reset by peer")
            if not self.broken and self.wire.modes.get(self.host) != STALLED:
                return
            await self._wait(None)

    async def news(self, timeout: float | None = None) -> None:
        """For the server: wait for news of its own or of the network."""
        await self._wait(timeout)
        await self.gate()

    async def _wait(self, timeout: float | None) -> None:
        self.held = True
        try:
            await self.wire.pulse.wait(timeout)
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up = True
            raise
        finally:
            self.held = False


class Wire(httpx2.AsyncBaseTransport):
    """``delays`` are the seconds that one of the two ways takes, one of them at random."""

    def __init__(self, serve: Serve, pulse: Pulse, rng: random.Random, delays: tuple[float, ...] = (0.0,)) -> None:
        self.serve, self.pulse, self.rng, self.delays = serve, pulse, rng, delays
        self.modes: dict[int, str] = {}
        self.down = False
        self.links: set[Link] = set()
        self.epoch = 0
        """The life of the servers that the client was last told of."""
        self.questions: list[tuple[float, Link]] = []
        """When each question came to a server."""
        self.answered = 0.0
        """When a server last sent bytes that arrived."""

    def cut(self, hosts: range, mode: str) -> None:
        """Let ``mode`` befall the way to ``hosts``."""
        for host in hosts:
            self.modes[host] = mode
        if mode != STALLED:
            self.sever(hosts, mode)

    def sever(self, hosts: range, mode: str = REFUSED) -> None:
        """End the connections of now; a connection that was dropped silently stays so."""
        for link in self.links:
            if link.host in hosts:
                link.broken = link.broken or mode
        self.pulse.fire()

    def heal(self) -> None:
        """All is well again, but for the connections that were dropped."""
        self.modes.clear()
        self.pulse.fire()

    def attached(self) -> list[Link]:
        """The questions that a server holds and can answer as soon as it wants."""
        return [link for link in self.links if link.held and not link.broken and not link.outlived]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        link = Link(self, int(request.url.host.removeprefix("host")))
        self.links.add(link)
        try:
            await self._connect(link, request)
            response = await self._exchange(link, request)
        except BaseException:
            self.links.discard(link)
            raise
        if isinstance(response.stream, Lines):
            response.stream.link = link  # it ends with its stream
        else:
            self.links.discard(link)
        return response

    async def _connect(self, link: Link, request: httpx2.Request) -> None:
        mode = self.modes.get(link.host)
        if self.down or mode == REFUSED:
            raise httpx2.ConnectError("connection refused")
        if mode == SILENT:
            await asyncio.sleep(request.extensions["timeout"]["connect"])
            raise httpx2.ConnectTimeout("timed out")

    async def _exchange(self, link: Link, request: httpx2.Request) -> httpx2.Response:
        delay, late = self.rng.choice(self.delays), self.rng.random() < 0.5
        if delay and not late:
            await asyncio.sleep(delay)
        await link.gate()
        self.questions.append((asyncio.get_running_loop().time(), link))
        response = await self.serve(link, request)
        if delay and late:
            await asyncio.sleep(delay)
        await link.gate()
        self.answered = asyncio.get_running_loop().time()
        return response


class Lines(httpx2.AsyncByteStream):
    """A body that a server goes on writing: ``lines`` waits for news through its link."""

    link: Link

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for line in self._lines:
            await self.link.gate()
            self.link.wire.answered = asyncio.get_running_loop().time()
            yield line

    async def aclose(self) -> None:
        await self._lines.aclose()  # type: ignore[attr-defined]
        self.link.wire.links.discard(self.link)
