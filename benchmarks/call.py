"""A pass-through governed call against the bare client's, over the same instant mock transport."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from typing import Protocol

import httpx2

from benchmarks.measure import Row, interleaved, ratio
from meshlib import Mesh, Settings, get, service_client
from meshlib.backends.memory import store
from meshlib.model import Instance

ROUNDS, CALLS, INSTANCES = 21, 300, 10
BAR = 1.15


@service_client("orders")
class Orders(Protocol):
    """The same call, declared."""

    @get("/orders/{id}")
    def fetch(self, id: int) -> dict[str, int]: ...
    @get("/orders/{id}")
    async def afetch(self, id: int) -> dict[str, int]: ...


def answer(_request: httpx2.Request) -> httpx2.Response:
    """The instant provider."""
    return httpx2.Response(200, content=b'{"id":7}', headers={"Content-Type": "application/json"})


def rows() -> list[Row]:
    """Blocking and asyncio; the plain client both ways, and a declared method beside them."""
    shared = store("benchmark-call")
    for number in range(INSTANCES):
        instance = Instance("orders", f"orders-{number}", f"10.0.0.{number + 1}", 8080)
        shared.instances["", "orders", instance.id] = (instance, float("inf"))
    settings = Settings(registry="memory://benchmark-call")
    mock = httpx2.MockTransport(answer)
    with Mesh(settings, transport=lambda _: mock, async_transport=lambda _: mock) as mesh:
        mesh.snapshot("orders")
        return [*_sync(mesh, mock), *_async(mesh, mock)]


def _sync(mesh: Mesh, mock: httpx2.MockTransport) -> list[Row]:
    bare, governed = httpx2.Client(transport=mock, base_url="http://orders", trust_env=False), mesh.http("orders")
    mounted = httpx2.Client(transport=mesh.transport(), base_url="http://orders", trust_env=False)
    orders = mesh.client(Orders)
    cases: dict[str, Callable[[], object]] = {
        "sync: bare httpx2 client": lambda: bare.get("/orders/7"),
        "sync: mesh.http()": lambda: governed.get("/orders/7"),
        "sync: the same bare client over mesh.transport()": lambda: mounted.get("/orders/7"),
        "sync: @service_client method, decoded": lambda: orders.fetch(7),
    }
    return _rows(interleaved(cases, rounds=ROUNDS, calls=CALLS))


def _async(mesh: Mesh, mock: httpx2.MockTransport) -> list[Row]:
    with asyncio.Runner() as runner:
        bare = httpx2.AsyncClient(transport=mock, base_url="http://orders", trust_env=False)
        mounted = httpx2.AsyncClient(transport=mesh.atransport(), base_url="http://orders", trust_env=False)
        governed, orders = mesh.ahttp("orders"), mesh.client(Orders)
        calls: dict[str, Callable[[], object]] = {
            "async: bare httpx2 client": lambda: bare.get("/orders/7"),
            "async: mesh.ahttp()": lambda: governed.get("/orders/7"),
            "async: the same bare client over mesh.atransport()": lambda: mounted.get("/orders/7"),
            "async: @service_client method, decoded": lambda: orders.afetch(7),
        }

        async def many(call: Callable[[], object]) -> None:
            for _ in range(CALLS):
                await call()

        cases = {name: (lambda call=call: runner.run(many(call))) for name, call in calls.items()}
        measured = interleaved(cases, rounds=ROUNDS, calls=1)
        return _rows({name: [one / CALLS for one in seconds] for name, seconds in measured.items()})


def _rows(measured: dict[str, list[float]]) -> list[Row]:
    base = next(iter(measured.values()))
    made = []
    for name, seconds in measured.items():
        compared = None if seconds is base else ratio(seconds, base)
        made.append(Row(name, statistics.median(seconds) * 1e6, "us CPU", compared, None if compared is None else BAR))
    return made
