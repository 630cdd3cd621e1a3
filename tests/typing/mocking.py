"""The test kit as type checkers see it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, assert_type

from meshlib import Mesh, NotFound, get, service_client
from meshlib.testing import MemoryMesh, Mock, Stub, call


@dataclass
class Order:
    id: int


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int, full: bool = False) -> Order: ...
    @get("/orders/{id}")
    async def later(self, id: int) -> Order: ...
    @get("/export")
    def export(self) -> Iterator[bytes]: ...
    @get("/events")
    def events(self) -> AsyncIterator[Order]: ...


def answer(id: int, full: bool = False) -> Order:
    return Order(id)


async def answer_later(id: int) -> Order:
    return Order(id)


def test_typed(mesh: MemoryMesh) -> None:
    mock = mesh.mock(Orders)
    assert_type(mock, Mock[Orders])
    assert_type(mock.client, Orders)
    assert_type(mesh.client(Orders), Orders)
    assert_type(mock.fetch, Stub[..., Any])
    fetch = mock.on(Orders.fetch)
    fetch.returns(Order(1))
    fetch.raises(NotFound)
    fetch.raises(KeyError("x"))
    fetch.in_turn(Order(1), NotFound, KeyError("x"))
    fetch.answers(answer)
    fetch.assert_called_with(7, full=True)
    mock.on(Orders.later).returns(Order(2))
    mock.on(Orders.later).answers(answer_later)
    streamed: Stub[[], Iterable[bytes]] = mock.on(Orders.export)
    streamed.returns([b"a"])
    mock.on(Orders.events).returns([Order(1)])
    mock.fetch.returns(Order(1))
    assert mock.fetch.calls == [call(id=7)]


def test_it_is_a_mesh(mesh: MemoryMesh) -> None:
    plain: Mesh = mesh
    plain.close()
    mesh.add("orders", lambda request: {"id": 7}, instances=2, version="1.0")
    mesh.kill("orders", 0)
    mesh.slow("orders", 1, 0.5)
    mesh.advance(20)


async def test_async(mesh: MemoryMesh) -> None:
    await mesh.aadvance(1.0)
    with mesh.frozen():
        await mesh.asleep(1.0)
