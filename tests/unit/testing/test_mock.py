"""Stub answers in place of a declared client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol, TypedDict

import pytest

from meshlib import ConfigError, ConnectFailed, NoInstances, NotFound, ServiceUnavailable, get, service_client
from meshlib.testing import MemoryMesh, call


@dataclass
class Order:
    id: int


class Stock(TypedDict):
    count: int


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int, full: bool = False) -> Order: ...
    @get("/orders/{id}")
    async def afetch(self, id: int) -> Order: ...
    @get("/orders")
    def find(self, tag: str | None = None) -> list[Order]: ...
    @get("/stock")
    def stock(self) -> Stock | None: ...
    @get("/export")
    def export(self) -> Iterator[bytes]: ...
    @get("/events")
    def events(self) -> AsyncIterator[Order]: ...
    @get("/later")
    async def later(self) -> AsyncIterator[str]: ...
    @get("/nothing")
    def nothing(self) -> None: ...


def test_everybody_who_has_the_client_gets_the_answers(mesh: MemoryMesh) -> None:
    early = mesh.client(Orders)
    mock = mesh.mock(Orders)
    mock.fetch.returns(Order(7))
    mock.on(Orders.afetch).returns(Order(8))
    for client in (early, mesh.client(Orders), mock.client):
        assert client.fetch(7) == Order(7)
        assert asyncio.run(client.afetch(7)) == Order(8)
    assert mesh.mock(Orders) is mock


def test_without_a_mock_it_is_the_client(mesh: MemoryMesh) -> None:
    """The control: nobody serves, and that is said."""
    with pytest.raises(NoInstances):
        mesh.client(Orders).fetch(7)


def test_calls_are_recorded_by_name(mesh: MemoryMesh) -> None:
    mock = mesh.mock(Orders)
    mock.fetch.returns(Order(1))
    client = mesh.client(Orders)
    client.fetch(7)
    client.fetch(id=8, full=True)
    assert mock.fetch.calls == [call(id=7), call(8, full=True)]
    assert mock.fetch.calls == [call(7, full=False), call(8, True)]
    assert mock.fetch.calls != [call(id=7), call(id=8)]
    assert mock.fetch.calls != [call(id=7)]
    assert call(nothing=7) != mock.fetch.calls[0]
    assert repr(mock.fetch.calls) == "[call(id=7), call(id=8, full=True)]"
    assert repr(call(7, full=True)) == "call(7, full=True)"
    mock.fetch.assert_called_with(8, full=True)
    mock.find.assert_not_called()
    assert mock.fetch.calls[1].arguments == {"id": 8, "full": True}


def test_assertions_say_what_was_called(mesh: MemoryMesh) -> None:
    mock = mesh.mock(Orders)
    mock.fetch.returns(Order(1))
    with pytest.raises(AssertionError, match=r"Orders.fetch was never called; expected call\(id=1\)"):
        mock.fetch.assert_called_with(1)
    mesh.client(Orders).fetch(7)
    with pytest.raises(AssertionError, match=r"the last call was call\(id=7\), not call\(id=8\)"):
        mock.fetch.assert_called_with(8)
    mock.fetch.assert_called_once_with(7)
    with pytest.raises(AssertionError, match=r"the call was call\(id=7\), not call\(id=8\)"):
        mock.fetch.assert_called_once_with(8)
    with pytest.raises(AssertionError, match=r"was called: \[call\(id=7\)\]"):
        mock.fetch.assert_not_called()
    mesh.client(Orders).fetch(7)
    with pytest.raises(AssertionError, match="called 2 times, not once"):
        mock.fetch.assert_called_once_with(7)
    with pytest.raises(TypeError, match=r"Orders.fetch\(id.*: missing a required argument: 'id'"):
        mock.fetch.assert_called_with()


@pytest.mark.parametrize(("error", "status"), [(NotFound, 404), (ServiceUnavailable, 503), (NotFound("gone", status=404), 404)])
def test_raising_an_error_of_a_status(mesh: MemoryMesh, error: type[NotFound] | NotFound, status: int) -> None:
    mesh.mock(Orders).fetch.raises(error)
    with pytest.raises(error if isinstance(error, type) else type(error)) as caught:
        mesh.client(Orders).fetch(7)
    assert caught.value.status == status


def test_raising_others(mesh: MemoryMesh) -> None:
    mock, client = mesh.mock(Orders), mesh.client(Orders)
    mock.fetch.raises(ConnectFailed)
    with pytest.raises(ConnectFailed, match="mocked"):
        client.fetch(7)
    mock.afetch.raises(KeyError("x"))
    with pytest.raises(KeyError):
        asyncio.run(client.afetch(7))
    with pytest.raises(TypeError, match="7 is no exception"):
        mock.fetch.raises(7)


def test_answering_by_a_function(mesh: MemoryMesh) -> None:
    mock, client = mesh.mock(Orders), mesh.client(Orders)
    mock.on(Orders.fetch).answers(lambda *args, **given: Order(given["id"] * 2))
    assert client.fetch(id=3) == Order(6)

    async def later(id: int) -> Order:
        await asyncio.sleep(0)
        return Order(id)

    mock.on(Orders.afetch).answers(later)
    assert asyncio.run(client.afetch(4)) == Order(4)
    with pytest.raises(TypeError, match="is no function"):
        mock.fetch.answers(Order(7))


def test_answers_in_turn(mesh: MemoryMesh) -> None:
    mock, client = mesh.mock(Orders), mesh.client(Orders)
    mock.fetch.in_turn(Order(1), NotFound, Order(2))
    assert client.fetch(7) == Order(1)
    with pytest.raises(NotFound):
        client.fetch(7)
    assert client.fetch(7) == Order(2)
    with pytest.raises(AssertionError, match="Orders.fetch: call 4 is one more than the 3 answers"):
        client.fetch(7)


def test_streams(mesh: MemoryMesh) -> None:
    mock, client = mesh.mock(Orders), mesh.client(Orders)
    mock.on(Orders.export).returns([b"a", b"b"])
    mock.on(Orders.events).returns(Order(number) for number in range(2))
    mock.later.returns(["x"])

    async def main() -> None:
        for _ in range(2):  # each time from its beginning
            assert [event async for event in client.events()] == [Order(0), Order(1)]
            assert [line async for line in await client.later()] == ["x"]

    for _ in range(2):
        assert list(client.export()) == [b"a", b"b"]
    asyncio.run(main())
    with pytest.raises(TypeError, match="streams bytes, and 'c' is none"):
        mock.export.returns([b"a", "c"])
    with pytest.raises(TypeError, match="is a stream: 7 cannot be iterated over"):
        mock.export.returns(7)


def test_plain_values(mesh: MemoryMesh) -> None:
    mock, client = mesh.mock(Orders), mesh.client(Orders)
    mock.find.returns([])
    mock.stock.returns(None)
    mock.nothing.returns(None)
    assert (client.find(), client.stock(), client.nothing()) == ([], None, None)  # type: ignore[func-returns-value]
    mock.stock.returns({"count": 1})
    assert client.stock() == {"count": 1}


@pytest.mark.parametrize(
    ("method", "value", "said"),
    [
        ("fetch", {"id": 7}, r"Orders.fetch returns Order, and {'id': 7} is none"),
        ("fetch", None, "returns Order, and None is none"),
        ("find", [Order(1), 2], "returns list"),
        ("find", Order(1), "returns list"),
        ("nothing", 1, "and 1 is none"),
    ],
)
def test_what_is_not_returned(mesh: MemoryMesh, method: str, value: object, said: str) -> None:
    stub = getattr(mesh.mock(Orders), method)
    for say in (stub.returns, stub.in_turn):
        with pytest.raises(TypeError, match=said):
            say(value)


def test_mistakes(mesh: MemoryMesh) -> None:
    mock, client = mesh.mock(Orders), mesh.client(Orders)
    with pytest.raises(AttributeError, match="Orders declares no method 'fetsch'; it has afetch, events"):
        _ = mock.fetsch
    with pytest.raises(AttributeError, match="declares no method 'upper'"):
        mock.on(str.upper)
    with pytest.raises(AssertionError, match=r"Orders.fetch was called as call\(id=7\), and has no answer; say mock.fetch.ret"):
        client.fetch(7)
    with pytest.raises(TypeError, match=r"Orders.fetch\(id.*missing a required argument: 'id'"):
        client.fetch(number=7)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="is not a declared client"):
        mesh.mock(dict)
    assert repr(mock.client) == repr(client) == "<mocked Orders>"
