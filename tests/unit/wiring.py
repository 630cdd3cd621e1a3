"""Stacks and engines put together without a mesh: no thread, no socket, a handler instead of instances."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2

from meshlib import worker
from meshlib.balance.fleet import Fleet
from meshlib.client.stack import Stack
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.mounts import AsyncMeshTransport, MeshTransport
from meshlib.policies.base import Site
from meshlib.settings import Settings
from meshlib.transport import AsyncEngine, Clock, Engine
from tests.unit.flows import governed, idle

Handler = Callable[[httpx2.Request], httpx2.Response]


class Dropping(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that comes in ``chunks`` and ends with ``failure``; it counts how often it is closed."""

    def __init__(self, *chunks: bytes, failure: Exception | None = None) -> None:
        self._chunks, self._failure, self.closed = chunks, failure, 0

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        if self._failure is not None:
            raise self._failure

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


class Contended:
    """A lock that counts who had to wait for it."""

    def __init__(self) -> None:
        self.lock, self.waited = threading.Lock(), 0

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.waited += 1
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def end_parents() -> None:
    """Where a fork was only played, what the parent left runs in this process, and would go on under the tests that follow."""
    for loop, _ in worker._abandoned:  # type: ignore[misc, attr-defined]
        if loop is not None and loop.is_running():
            loop.call_soon_threadsafe(loop.stop)
    worker._abandoned.clear()


class World:
    """Services ``orders`` and ``stock`` with instances ``a`` and ``b`` each; ``handler`` answers for all of them."""

    def __init__(self, handler: Handler, *, scheme: str = "http", clock: Clock | None = None, **settings: Any) -> None:
        self.fleets: dict[str, Fleet] = {}
        for service, net in (("orders", "10.0.0"), ("stock", "10.0.1")):
            url = ServiceUrl(service)
            both = (Instance(service, "a", f"{net}.1", 8000, scheme), Instance(service, "b", f"{net}.2", 8000, scheme))
            self.fleets[service] = Fleet(url)
            self.fleets[service].update(Snapshot(url, both))
        made = Settings(registry="memory://unused", **settings)
        self.engine = Engine(made, lambda _instance: httpx2.MockTransport(handler), clock)
        self.async_engine = AsyncEngine(made, lambda _instance: httpx2.MockTransport(handler), clock)
        self.proceed = {name: governed(known) for name, known in self.fleets.items()}

    def stack(self, host: str) -> tuple[ServiceUrl, Stack]:
        return ServiceUrl.parse(host), Stack(Site(), (), self.proceed[host])

    def transport(self) -> MeshTransport:
        return MeshTransport(self.stack, self.engine)

    def atransport(self) -> AsyncMeshTransport:
        return AsyncMeshTransport(self.stack, self.async_engine)

    def idle(self) -> bool:
        return idle(*self.fleets.values())
