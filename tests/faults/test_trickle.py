"""A provider that sends its answer byte by byte: each byte resets the engine's time-outs, the deadline of the call does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Protocol

import pytest

from meshlib import AttemptTimeout, DeadlineExceeded, Mesh, MeshError, Settings, get, service_client, transport

pytestmark = pytest.mark.anyio

TIMEOUT = 1.0
PAUSE = 0.04
"""Seconds between two bytes: no time-out of the engine's notices them, unless the machine itself stands still."""
LONG, SHORT = 1000, 50
"""Bytes that take longer than a test, and those that take twice as long as the deadline allows."""


@service_client("slow", timeout=TIMEOUT)
class Slow(Protocol):
    @get("/")
    async def fetch(self) -> bytes: ...


@asynccontextmanager
async def slow_client(length: int) -> AsyncIterator[Slow]:
    """Of a provider whose answer has ``length`` bytes."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Slow: "
        with suppress(OSError, asyncio.IncompleteReadError), closing(writer):  # it may have been given up before it was asked
            await reader.readuntil(b"\r\n\r\n")
            for byte in head.ljust(length - 4, b"y") + b"\r\n\r\n":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(PAUSE)

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mesh = Mesh(Settings(registry=f"static://slow=127.0.0.1:{port}"))
    try:
        yield mesh.client(Slow)
    finally:
        await asyncio.to_thread(mesh.close)
        server.close()
        serving = [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "trickle"]  # type: ignore[union-attr]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0.05)  # the pools of this loop are closed in it


async def test_the_deadline_ends_it() -> None:
    async with slow_client(LONG) as client:
        start = time.monotonic()
        with pytest.raises((DeadlineExceeded, AttemptTimeout)):
            await client.fetch()
        assert time.monotonic() - start < LONG * PAUSE / 2


async def test_control_without_it_the_call_takes_as_long_as_the_provider_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TRICKLE", 3600.0)

    async def takes_as_long() -> bool:
        async with slow_client(SHORT) as client:
            start = time.monotonic()
            with suppress(MeshError):  # the body is looked at only once the head is there
                await client.fetch()
            return time.monotonic() - start >= SHORT * PAUSE

    for _ in range(5):  # unless the machine itself stands still
        if await takes_as_long():
            return
    pytest.fail("something has ended it")
