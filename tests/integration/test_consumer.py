"""A whole mesh as its consumers use it, over the memory registry; the instances are a handler."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import httpx
import httpx2
import pytest

from meshlib import ConfigError, Instance, Mesh, NoInstances, Settings, get, service_client
from meshlib.backends.memory import Store, store
from tests.servers.base import eventually

_numbers = itertools.count()


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> str: ...

    @get("/orders/{id}")
    async def afetch(self, id: int) -> str: ...


def echo(request: httpx2.Request) -> httpx2.Response:
    if request.url.host == "10.0.0.9":
        raise httpx2.ConnectError("refused")
    return httpx2.Response(200, text=str(request.url))


def listed(name: str = "a", service: str = "orders", host: str = "10.0.0.1", **fields: str) -> Instance:
    return Instance(service, name, host, 8000, **fields)  # type: ignore[arg-type]


@pytest.fixture
def name() -> str:
    return f"consumer-{next(_numbers)}"


@pytest.fixture
def registry(name: str) -> Store:
    return store(name)


@pytest.fixture
def mesh(name: str, tmp_path: Path) -> Iterator[Mesh]:
    settings = Settings.load(environ={}, registry=f"memory://{name}", state_dir=str(tmp_path), cold_start_timeout=30.0)
    mock = httpx2.MockTransport(echo)
    with Mesh(settings, transport=lambda _: mock, async_transport=lambda _: mock) as made:
        yield made


def put(registry: Store, *instances: Instance) -> None:
    with registry.lock:
        registry.instances = {(one.namespace, one.service, one.id): (one, math.inf) for one in instances}
        registry.touch()


def test_every_way_to_call(mesh: Mesh, registry: Store) -> None:
    put(registry, listed(), listed("s", "stock", "10.0.1.1"))
    orders = mesh.client(Orders)
    assert orders.fetch(7) == "http://10.0.0.1:8000/orders/7"
    assert asyncio.run(orders.afetch(7)) == "http://10.0.0.1:8000/orders/7"
    assert mesh.http("orders").get("/x?y=1").text == "http://10.0.0.1:8000/x?y=1"
    assert asyncio.run(_aget(mesh)) == "http://10.0.0.1:8000/x"
    for library in (httpx2, httpx):
        with library.Client(mounts={"http://": mesh.transport()}) as client:
            assert client.get("http://orders/x").text == "http://10.0.0.1:8000/x"
            assert client.get("http://stock/y").text == "http://10.0.1.1:8000/y"


async def _aget(mesh: Mesh) -> str:
    async with mesh.ahttp("orders") as client:
        return (await client.get("/x")).text


def test_the_first_call_waits_for_the_registry_and_no_longer(mesh: Mesh) -> None:
    begun = time.monotonic()
    with pytest.raises(NoInstances, match="no instance is registered"):
        mesh.http("nobody").get("/")
    assert time.monotonic() - begun < mesh.settings.cold_start_timeout / 2


def test_one_instance_and_one_namespace(mesh: Mesh, registry: Store) -> None:
    put(registry, listed("a"), listed("b", host="10.0.0.2"), listed("c", host="10.0.0.3", namespace="shop.prod"))
    assert {mesh.http("orders/b").get("/").text for _ in range(5)} == {"http://10.0.0.2:8000/"}
    assert {mesh.client(Orders, name="orders/b").fetch(1) for _ in range(5)} == {"http://10.0.0.2:8000/orders/1"}
    assert mesh.http("shop.prod.orders").get("/").text == "http://10.0.0.3:8000/"
    with httpx2.Client(transport=mesh.transport("orders/a")) as client:
        assert client.get("http://orders/").text == "http://10.0.0.1:8000/"


def test_a_dead_instance_fails_nobodys_call(mesh: Mesh, registry: Store) -> None:
    put(registry, listed("a", host="10.0.0.9"), listed("b", host="10.0.0.2"))
    client = mesh.http("orders", base_url="http://orders/v1")
    assert {client.post("/x", content=iter([b"once"])).text for _ in range(20)} == {"http://10.0.0.2:8000/v1/x"}


def test_changes_reach_callers(mesh: Mesh, registry: Store) -> None:
    put(registry, listed("a"))
    orders = mesh.client(Orders)
    orders.fetch(1)
    put(registry, listed("a"), listed("b", host="10.0.0.2"))
    eventually(lambda: "10.0.0.2" in orders.fetch(1))
    snapshot = mesh.snapshot("orders")
    assert snapshot is not None
    assert [one.id for one in snapshot.instances] == ["a", "b"]


def test_what_is_wrong_is_told_at_once(mesh: Mesh) -> None:
    for wrong in (lambda: mesh.http("two.labels"), lambda: mesh.client(int), lambda: mesh.transport(picker="rounds")):
        with pytest.raises(ConfigError):
            wrong()
