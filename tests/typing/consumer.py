"""A consumer as type checkers see it: this file is clean under ``mypy --strict`` and pyright."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol, TypedDict

import httpx2

from meshlib import Header, Mesh, Query, ServiceUrl, delete, get, post, rate_limit, service_client
from meshlib_contrib.fastapi import Client
from meshlib_contrib.flask import MeshFlask


@dataclass
class Order:
    id: int


class Stock(TypedDict):
    count: int


@service_client("orders", timeout=2.0, headers={"X-App": "shop"})
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> Order: ...

    @get("/orders")
    async def find(self, tag: list[str] | None = None, *, size: Annotated[int, Query("page_size")] = 10) -> list[Order]: ...

    @post("/orders")
    def create(self, order: Order, tenant: Annotated[str | None, Header("X-Tenant")] = None) -> Order: ...

    @delete("/orders/{id}")
    def remove(self, id: int) -> None: ...

    @get("/stock/{id}")
    def stock(self, id: int) -> Stock | None: ...

    @get("/raw")
    def raw(self) -> httpx2.Response: ...

    @get("/export")
    def export(self) -> Iterator[bytes]: ...

    @get("/events")
    def events(self) -> AsyncIterator[Order]: ...

    @post("/import")
    def load(self, chunks: Iterable[bytes]) -> None: ...


class FakeOrders:
    """A fake is a plain class: no base, no registration."""

    def fetch(self, id: int) -> Order:
        return Order(id)

    async def find(self, tag: list[str] | None = None, *, size: int = 10) -> list[Order]:
        return [Order(number) for number in range(size)]

    def create(self, order: Order, tenant: str | None = None) -> Order:
        return order

    def remove(self, id: int) -> None:
        pass

    def stock(self, id: int) -> Stock | None:
        return {"count": id}

    def raw(self) -> httpx2.Response:
        return httpx2.Response(200)

    def export(self) -> Iterator[bytes]:
        yield b""

    async def events(self) -> AsyncIterator[Order]:
        yield Order(1)

    def load(self, chunks: Iterable[bytes]) -> None:
        list(chunks)


def total(orders: Orders) -> int:
    order: Order = orders.fetch(1)
    stock = orders.stock(order.id)
    return stock["count"] if stock is not None else orders.create(order, tenant="acme").id


async def count(orders: Orders) -> int:
    found: list[Order] = await orders.find(["new"], size=5)
    return len(found) + len([order async for order in orders.events()])


def with_a_mesh() -> int:
    with Mesh.from_env() as mesh:
        orders: Orders = mesh.client(Orders)
        pinned: Orders = mesh.client(Orders, name=ServiceUrl("orders", instance="orders-1"))
        chunk: bytes = next(orders.export())
        response: httpx2.Response = mesh.http("orders").get("/orders/1")
        return total(orders) + total(pinned) + len(chunk) + response.status_code


def with_a_fake() -> int:
    return total(FakeOrders())


@rate_limit("100/s")
async def route(id: int, orders: Annotated[Orders, Client(Orders)]) -> Order:
    return orders.fetch(id)


def in_flask() -> int:
    orders: Orders = MeshFlask().client(Orders)
    return total(orders)
