"""A provider that sends its answer byte by byte: each byte resets the engine's time-outs, the deadline of the call does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Protocol

import pytest

from meshlib import AttemptTimeout, DeadlineExceeded, Mesh, Settings, get, service_client, transport

pytestmark = pytest.mark.anyio

TIMEOUT = 0.3


@service_client("slow", timeout=TIMEOUT)
class Slow(Protocol):
    @get("/")
    async def fetch(self) -> bytes: ...


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError), closing(writer):
        await reader.readuntil(b"\r\n\r\n")
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Slow: yes\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.04)


@asynccontextmanager
async def slow_client() -> AsyncIterator[Slow]:
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
    async with slow_client() as client:
        start = time.monotonic()
        with pytest.raises((DeadlineExceeded, AttemptTimeout)):
            await client.fetch()
        assert time.monotonic() - start < TIMEOUT * 4


async def test_control_without_it_the_call_takes_as_long_as_the_provider_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TRICKLE", 3600.0)
    async with slow_client() as client:
        start = time.monotonic()
        with suppress(DeadlineExceeded):  # the body is looked at only once the head is there
            await client.fetch()
        assert time.monotonic() - start > TIMEOUT * 4
