"""Declared methods performed: what comes back, what is raised, what is given back."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Protocol, TypedDict

import httpx
import httpx2
import msgspec
import pydantic
import pytest

from meshlib import ConfigError, get, post, service_client
from meshlib.client.stub import declaration_of
from meshlib.errors import (
    BODY_EXCERPT,
    BadRequest,
    ClientError,
    ConnectionLost,
    DeadlineExceeded,
    DecodeError,
    NoInstances,
    NotFound,
    ServerError,
    ServiceUnavailable,
    StatusError,
    TooManyRequests,
)
from meshlib.model import ServiceUrl
from tests.unit.client.declared import Seen, client
from tests.unit.wiring import Dropping, World


@dataclasses.dataclass
class Order:
    id: int
    at: dt.date | None = None


class Struct(msgspec.Struct):
    id: int


class Model(pydantic.BaseModel):
    id: int


class Typed(TypedDict):
    id: int


@dataclasses.dataclass
class Basket:
    model: Model


def returning(hint: Any, *, is_async: bool = False) -> type:
    """A client with one method ``fetch`` that returns ``hint``."""
    if is_async:

        async def fetch(self: Any) -> Any: ...
    else:

        def fetch(self: Any) -> Any: ...

    fetch.__annotations__ = {"return": hint}
    return service_client("orders")(type("Orders", (Protocol,), {"fetch": get("/o")(fetch)}))  # type: ignore[return-value]


def fetched(hint: Any, handler: Any, *, is_async: bool = False) -> Any:
    world = World(handler)
    made = client(returning(hint, is_async=is_async), world)
    try:
        return asyncio.run(made.fetch()) if is_async else made.fetch()  # type: ignore[attr-defined]
    finally:
        assert world.idle()


both = pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])


@both
class TestReturns:
    @pytest.mark.parametrize(
        ("hint", "content", "value"),
        [
            (Order, b'{"id":1,"at":"2024-02-29","new":0}', Order(1, dt.date(2024, 2, 29))),
            (list[Order], b'[{"id":1}]', [Order(1)]),
            (Struct, b'{"id":1}', Struct(1)),
            (list[Struct], b'[{"id":1}]', [Struct(1)]),
            (Model, b'{"id":1}', Model(id=1)),
            (list[Model], b'[{"id":1}]', [Model(id=1)]),
            (dict[str, Model], b'{"a":{"id":1}}', {"a": Model(id=1)}),
            (Basket, b'{"model":{"id":1}}', Basket(Model(id=1))),
            (Typed, b'{"id":1}', {"id": 1}),
            (list[Typed], b'[{"id":1}]', [{"id": 1}]),
            (dict, b'{"a":[1]}', {"a": [1]}),
            (dict[str, int], b'{"a":1}', {"a": 1}),
            (Any, b'{"a":[1]}', {"a": [1]}),
            (int, b"7", 7),
            (float, b"1.5", 1.5),
            (bool, b"true", True),
            (bytes, b"\xff\0", b"\xff\0"),
            (str, "tëxt".encode(), "tëxt"),
            (None, b"whatever", None),
            (Order | None, b"", None),
            (Order | None, b" ", None),
            (Order | None, b"null", None),
            (Order | None, b'{"id":1}', Order(1)),
            (Annotated[Order, "a note"], b'{"id":1}', Order(1)),
        ],
    )
    def test_values(self, is_async: bool, hint: Any, content: bytes, value: Any) -> None:
        assert fetched(hint, Seen(content=content), is_async=is_async) == value

    def test_text_in_json_is_unpacked(self, is_async: bool) -> None:
        assert fetched(str, Seen(json="a\nb"), is_async=is_async) == "a\nb"

    @pytest.mark.parametrize("library", [httpx2, httpx])
    @pytest.mark.parametrize("status", [200, 302, 404, 503])
    def test_raw_responses_are_read_whatever_their_status(self, is_async: bool, library: Any, status: int) -> None:
        handler = Seen(status, stream=Dropping(b'{"id"', b":1}"))
        response = fetched(library.Response, handler, is_async=is_async)
        assert type(response) is library.Response
        assert (response.status_code, response.json()) == (status, {"id": 1})
        assert response.is_closed
        assert response.elapsed.total_seconds() >= 0
        assert str(response.request.url) == "http://10.0.0.1:8000/o"

    @pytest.mark.parametrize(
        ("hint", "answer"),
        [(Order, {"content": b"<html>"}), (Order, {"content": b""}), (Order, {"json": {"id": "x"}}), (Model, {"json": {}}),
         (int, {"json": 1.5}), (str, {"json": 7}), (Basket, {"json": {"model": {}}}), (list[Order], {"json": {}}),
         (Order, {"stream": Dropping(b"not gzip"), "headers": {"content-encoding": "gzip"}})],
    )  # fmt: skip
    def test_what_does_not_fit_is_a_decode_error(self, is_async: bool, hint: Any, answer: dict[str, Any]) -> None:
        with pytest.raises(DecodeError, match="GET orders/o") as caught:
            fetched(hint, Seen(**answer), is_async=is_async)
        assert caught.value.instance is not None
        assert caught.value.__cause__ is not None


@both
class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [(301, StatusError), (304, StatusError), (400, BadRequest), (404, NotFound), (418, ClientError),
         (429, TooManyRequests), (500, ServerError), (503, ServiceUnavailable)],
    )  # fmt: skip
    def test_by_status(self, is_async: bool, status: int, kind: type[StatusError]) -> None:
        for hint in (Order, None, bytes):
            with pytest.raises(kind) as caught:
                fetched(hint, Seen(status, content=b"no such\r\norder"), is_async=is_async)
            error = caught.value
            assert type(error) is kind
            assert (error.status, error.body, error.service) == (status, b"no such\r\norder", ServiceUrl("orders"))
            assert error.instance is not None
            assert error.instance.id == "a"
            assert str(error) == f"GET orders/o at 10.0.0.1:8000 answered {status}: no such order"

    def test_of_streams(self, is_async: bool) -> None:
        body = Dropping(*[b"x" * 1000] * 100)
        world = World(Seen(404, stream=body))
        hint = AsyncIterator[bytes] if is_async else Iterator[bytes]
        with pytest.raises(NotFound) as caught:
            drain(client(returning(hint), world).fetch())  # type: ignore[attr-defined]
        assert len(caught.value.body) == BODY_EXCERPT
        assert body.closed == 1
        assert world.idle()

    def test_the_excerpt_is_bounded(self, is_async: bool) -> None:
        with pytest.raises(ServerError) as caught:
            fetched(Order, Seen(500, content=b"x" * 10_000), is_async=is_async)
        assert len(caught.value.body) == BODY_EXCERPT
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("7", 7.0), (" 7 ", 7.0), ("", None), ("soon", None), ("-1", None), ("²", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
         ("9" * 400, 366 * 86_400.0), ("Wed, 21 Oct 99999 07:28:00 GMT", None)],
    )  # fmt: skip
    def test_retry_after(self, is_async: bool, text: str, seconds: float | None) -> None:
        with pytest.raises(TooManyRequests) as caught:
            fetched(None, Seen(429, headers=[(b"retry-after", text.encode("latin-1"))]), is_async=is_async)
        assert caught.value.retry_after == seconds

    def test_the_connection(self, is_async: bool) -> None:
        def cut(_request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ReadError("cut")

        with pytest.raises(ConnectionLost) as caught:
            fetched(None, cut, is_async=is_async)
        assert [one.id for one in caught.value.tried] == ["a", "b"]
        assert not isinstance(caught.value, httpx2.HTTPError)

    def test_a_buffered_body_cut_in_the_middle_is_read_elsewhere(self, is_async: bool) -> None:
        bodies = [Dropping(b'{"id"', failure=httpx2.ReadError("cut")), Dropping(b'{"id":1}')]
        assert fetched(Order, lambda _: httpx2.Response(200, stream=bodies.pop(0)), is_async=is_async) == Order(1)

    def test_the_deadline(self, is_async: bool) -> None:
        def slow(_request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("refused")

        world = World(slow)
        made = client(returning(None, is_async=is_async), world, timeout=1e-9)
        with pytest.raises(DeadlineExceeded):
            asyncio.run(made.fetch()) if is_async else made.fetch()  # type: ignore[attr-defined]
        assert world.idle()


def test_the_query_is_in_no_message() -> None:
    @service_client("orders")
    class Secretive(Protocol):
        @get("/orders")
        def fetch(self, token: str) -> Order: ...

    for answer in (httpx2.Response(404), httpx2.Response(200, content=b"no JSON")):
        with pytest.raises((NotFound, DecodeError)) as caught:
            client(Secretive, lambda _, answer=answer: answer).fetch("hunter2")
        assert "orders/orders" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_timeouts_of_a_call() -> None:
    seen = Seen()
    client(returning(None), seen, timeout=500.0, connect=1000.0).fetch()  # type: ignore[attr-defined]
    limits = seen.request.extensions["timeout"]
    assert set(limits) == {"connect", "read", "write", "pool"}
    assert all(400.0 < limit <= 500.0 for limit in limits.values()), limits
    client(returning(None), seen, timeout=500.0).fetch()  # type: ignore[attr-defined]
    limits = seen.request.extensions["timeout"]
    assert (limits["connect"], limits["pool"]) == (1.0, 1.0)
    assert all(400.0 < limits[name] <= 500.0 for name in ("read", "write")), limits


def drain(items: Any) -> list[Any]:
    async def scenario() -> list[Any]:
        return [item async for item in items]

    return asyncio.run(scenario()) if hasattr(items, "__aiter__") else list(items)


@service_client("orders")
class Streams(Protocol):
    @get("/bytes")
    def raw(self) -> Iterator[bytes]: ...

    @get("/bytes")
    def araw(self) -> AsyncIterator[bytes]: ...

    @get("/bytes")
    async def awaited(self) -> AsyncIterator[bytes]: ...

    @get("/lines")
    def lines(self) -> Iterator[str]: ...

    @get("/lines")
    def alines(self) -> AsyncIterator[str]: ...

    @get("/orders")
    def orders(self) -> Iterator[Order]: ...

    @get("/orders")
    def aorders(self) -> AsyncIterator[Order]: ...

    @get("/models")
    def models(self) -> Iterator[Model]: ...


def streams(*chunks: bytes, failure: Exception | None = None) -> tuple[Streams, World, Dropping]:
    body = Dropping(*chunks, failure=failure)
    world = World(lambda _: httpx2.Response(200, stream=body))
    return client(Streams, world), world, body


async def awaited(made: Streams) -> AsyncIterator[bytes]:
    async for chunk in await made.awaited():
        yield chunk


class TestStreamsDown:
    @pytest.mark.parametrize("start", [lambda s: s.raw(), lambda s: s.araw(), awaited], ids=["def", "aiter", "async def"])
    def test_bytes(self, start: Callable[[Streams], Any]) -> None:
        made, world, body = streams(b"a\n", b"\r\nb")
        assert drain(start(made)) == [b"a\n", b"\r\nb"]
        assert world.idle()
        assert body.closed == 1

    @pytest.mark.parametrize("name", ["lines", "alines"])
    def test_lines_keep_the_empty_ones(self, name: str) -> None:
        made, world, _ = streams(b"da", "ta: ë\r\n\r".encode()[:-3], b"\r\n\r\n\nlast")
        assert drain(getattr(made, name)()) == ["data: ë", "", "", "last"]
        assert world.idle()

    @pytest.mark.parametrize("name", ["orders", "aorders"])
    def test_json_lines(self, name: str) -> None:
        made, world, _ = streams(b'{"id"', b':1}\n\n{"id":2}\r\n{"i', b'd":3}')
        assert drain(getattr(made, name)()) == [Order(1), Order(2), Order(3)]
        assert world.idle()

    def test_models(self) -> None:
        assert drain(streams(b'{"id":1}\n')[0].models()) == [Model(id=1)]

    @pytest.mark.parametrize("name", ["orders", "aorders", "lines", "alines", "models"])
    def test_what_does_not_fit(self, name: str) -> None:
        made, world, body = streams(b'\xff{"id":"x"}\n')
        with pytest.raises(DecodeError):
            drain(getattr(made, name)())
        assert world.idle()
        assert body.closed == 1

    @pytest.mark.parametrize("name", ["raw", "araw", "orders", "aorders"])
    def test_a_body_that_breaks(self, name: str) -> None:
        made, world, body = streams(b"", failure=httpx2.ReadError("cut"))
        with pytest.raises(ConnectionLost, match=r"at 10\.0\.0\.1:8000: cut") as caught:
            drain(getattr(made, name)())
        assert caught.value.instance is not None
        assert world.idle()
        assert body.closed == 1

    def test_left_early(self) -> None:
        made, world, body = streams(b"a", b"b")
        chunks = made.raw()
        assert next(chunks) == b"a"
        assert not world.idle()
        chunks.close()  # type: ignore[attr-defined]
        assert world.idle()
        assert body.closed == 1

    def test_left_early_async(self) -> None:
        made, world, body = streams(b"a", b"b")

        async def scenario() -> None:
            chunks = made.araw()
            assert await anext(chunks) == b"a"
            assert not world.idle()
            await chunks.aclose()  # type: ignore[attr-defined]

        asyncio.run(scenario())
        assert world.idle()
        assert body.closed == 1

    def test_forgotten(self) -> None:
        made, world, body = streams(b"a", b"b")
        next(made.raw())
        gc.collect()
        assert world.idle()
        assert body.closed == 1

    def test_cancelled_while_reading(self) -> None:
        class Stalling(Dropping):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield b"a"
                await asyncio.Event().wait()

        body = Stalling()
        world = World(lambda _: httpx2.Response(200, stream=body))
        made = client(Streams, world)

        async def scenario() -> None:
            async def consume() -> None:
                async for _ in made.araw():
                    pass

            task = asyncio.create_task(consume())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not world.idle()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio.run(scenario())
        assert world.idle()
        assert body.closed == 1

    def test_nothing_is_sent_before_the_first_item_is_asked_for(self) -> None:
        seen = Seen()
        client(Streams, seen).raw()
        assert seen.requests == []

    def test_wrong_arguments_are_told_at_once(self) -> None:
        with pytest.raises(TypeError):
            client(Streams, Seen()).raw(1)  # type: ignore[call-arg]


@service_client("orders")
class Orders(Protocol):
    @get("/o/{id}")
    def fetch(self, id: int) -> Order: ...

    @post("/o")
    async def create(self, order: Order) -> Order: ...

    def double(self, id: int) -> int:
        return self.fetch(id).id * 2


class TestImplementation:
    def test_it_is_one_of_the_protocol(self) -> None:
        made = client(Orders, Seen(json={"id": 4}))
        assert isinstance(made, Orders) if getattr(Orders, "_is_runtime_protocol", False) else Orders in type(made).__mro__
        assert made.double(1) == 8
        assert repr(made) == "<Orders client of orders>"
        assert inspect.iscoroutinefunction(made.create)

    def test_another_name(self) -> None:
        seen = Seen(json={"id": 4})
        client(Orders, seen, name="stock").fetch(1)
        assert seen.request.url.host == "10.0.1.1"
        client(Orders, seen, name="orders/b").fetch(1)
        assert seen.request.url.host == "10.0.0.2"
        with pytest.raises(NoInstances):
            client(Orders, seen, name="orders/z").fetch(1)

    def test_what_cannot_be_decoded_is_told_when_the_client_is_made(self) -> None:
        class Odd:
            pass

        cls = returning(dict[Odd, int] | set[int] | list[int])
        assert declaration_of(cls)
        with pytest.raises(ConfigError, match="fetch"):
            client(cls, Seen())
