"""From arguments to requests."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Annotated, Any, Protocol

import msgspec
import pydantic
import pytest

from meshlib import Body, ConfigError, Header, Query, delete, get, patch, post, put, service_client
from tests.unit.client.declared import Seen, client


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Order:
    id: int
    at: dt.date = dt.date(2024, 2, 29)


class Model(pydantic.BaseModel):
    id: int


@dataclasses.dataclass
class Basket:
    model: Model


@service_client("orders", headers={"X-Fixed": "1"})
class Orders(Protocol):
    @get("/o/{id}")
    def fetch(self, id: Any) -> None: ...

    @get("/f/{path:path}")
    def file(self, path: str) -> None: ...

    @get("/o?fixed=1")
    def find(
        self, q: str | None = None, *, tags: list[str | bool | None] | None = None,
        size: Annotated[int, Query("page_size")] = 10,
    ) -> None: ...  # fmt: skip

    @get("/o")
    def one(self, q: Annotated[Any, Query()]) -> None: ...

    @get("/o")
    def headed(
        self, a: Annotated[Any, Header("X-A")] = None, *, accept: Annotated[str | None, Header()] = None,
        host: Annotated[str | None, Header()] = None,
    ) -> None: ...  # fmt: skip

    @post("/o")
    def create(self, order: Order, /, note: str = "n") -> None: ...

    @put("/o")
    def replace(self, body: Annotated[Any, Body()]) -> None: ...

    @patch("/o")
    def touch(self) -> None: ...

    @delete("/o")
    def remove(self, ids: Annotated[list[int] | None, Body()] = None) -> None: ...

    @post("/o")
    def typed(self, body: bytes, content_type: Annotated[str | None, Header()] = None) -> None: ...

    @post("/o")
    def upload(self, chunks: Iterable[bytes]) -> None: ...

    @post("/o")
    async def aupload(self, chunks: AsyncIterable[bytes]) -> None: ...

    @post("/o")
    async def aupload_blocking(self, chunks: Iterable[bytes]) -> None: ...


def sent(use: Callable[[Orders], Any]) -> Any:
    seen = Seen()
    use(client(Orders, seen))
    return seen.request


@pytest.mark.parametrize(
    ("value", "text"),
    [("a b/c?d#é", "a%20b%2Fc%3Fd%23%C3%A9"), (7, "7"), (True, "true"), (1.5, "1.5"), (Colour.RED, "red"), (Level.HIGH, "3"),
     (Word.YES, "yes"), (decimal.Decimal("1.10"), "1.10"), (dt.date(2024, 2, 29), "2024-02-29"), ("%2e", "%252e"),
     (dt.datetime(2024, 2, 29, 1, tzinfo=dt.UTC), "2024-02-29T01%3A00%3A00%2B00%3A00"), (uuid.UUID(int=1), str(uuid.UUID(int=1))),
     ("...", "..."), ("\r\nX: 1", "%0D%0AX%3A%201"), ("\\", "%5C")],
)  # fmt: skip
def test_plain_values(value: Any, text: str) -> None:
    assert sent(lambda orders: orders.fetch(value)).url.raw_path == f"/o/{text}".encode()
    assert sent(lambda orders: orders.one(value)).url.raw_path == f"/o?q={text}".encode()


@pytest.mark.parametrize("value", ["", ".", "..", None, "\ud800"])
def test_what_cannot_stand_in_a_path(value: Any) -> None:
    with pytest.raises(ConfigError):
        sent(lambda orders: orders.fetch(value))


def test_a_path_of_several_segments() -> None:
    assert sent(lambda orders: orders.file("a/b c/..d")).url.raw_path == b"/f/a/b%20c/..d"
    for bad in ("a/../b", "../a", "a/.", ""):
        with pytest.raises(ConfigError):
            sent(lambda orders, bad=bad: orders.file(bad))


def test_queries() -> None:
    assert sent(lambda orders: orders.find()).url.query == b"fixed=1&page_size=10"
    request = sent(lambda orders: orders.find("x&y", tags=["a", None, True], size=5))
    assert request.url.query == b"fixed=1&q=x%26y&tags=a&tags=true&page_size=5"
    assert sent(lambda orders: orders.one(None)).url.raw_path == b"/o"


def test_headers() -> None:
    headers = sent(lambda orders: orders.headed(["a", 1, None])).headers
    assert headers.get_list("x-a") == ["a", "1"]
    assert headers["x-fixed"] == "1"
    assert "x-a" not in sent(lambda orders: orders.headed()).headers
    assert sent(lambda orders: orders.headed(accept="text/plain")).headers.get_list("accept") == ["text/plain"]
    assert sent(lambda orders: orders.headed(host="shop")).headers.get_list("host") == ["shop"]
    assert sent(lambda orders: orders.headed()).headers.get_list("host") == ["10.0.0.1:8000"]


@pytest.mark.parametrize("value", ["a\r\nX: 1", "a\nb", "\0", "\x7f", "\u2028"])
def test_headers_that_would_break_out(value: str) -> None:
    with pytest.raises(ConfigError, match="X-A"):
        sent(lambda orders: orders.headed(value))


@pytest.mark.parametrize(
    ("body", "content", "kind"),
    [(Order(1), b'{"id":1,"at":"2024-02-29"}', "application/json"), ({"a": [1]}, b'{"a":[1]}', "application/json"),
     ([Order(1)], b'[{"id":1,"at":"2024-02-29"}]', "application/json"), (Model(id=1), b'{"id":1}', "application/json"),
     ([Model(id=1)], b'[{"id":1}]', "application/json"), (Basket(Model(id=1)), b'{"model":{"id":1}}', "application/json"),
     (b"raw", b"raw", "application/octet-stream"), (bytearray(b"raw"), b"raw", "application/octet-stream"),
     ("tëxt", "tëxt".encode(), "text/plain; charset=utf-8"), (7, b"7", "application/json"),
     (msgspec.defstruct("S", [("a", int)])(1), b'{"a":1}', "application/json")],
)  # fmt: skip
def test_bodies(body: Any, content: bytes, kind: str) -> None:
    request = sent(lambda orders: orders.replace(body))
    assert request.content == content
    assert request.headers.get_list("content-type") == [kind]
    assert request.headers.get_list("content-length") == [str(len(content))]


def test_a_body_with_no_json_form_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="object"):
        sent(lambda orders: orders.replace(object()))


def test_no_body() -> None:
    assert sent(lambda orders: orders.touch()).headers["content-length"] == "0"
    assert "content-length" not in sent(lambda orders: orders.fetch(1)).headers
    assert "content-length" not in sent(lambda orders: orders.remove()).headers
    assert sent(lambda orders: orders.remove([1])).content == b"[1]"


def test_the_type_that_the_caller_says() -> None:
    said = sent(lambda orders: orders.typed(b"<x/>", "application/xml")).headers
    assert said.get_list("content-type") == ["application/xml"]
    assert sent(lambda orders: orders.typed(b"")).headers.get_list("content-type") == ["application/octet-stream"]


class TestArguments:
    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [((), {}), ((1, 2), {}), ((1,), {"q": 1}), ((), {"id": 1, "more": 2}), ((1,), {"id": 2})],
    )
    def test_wrong_ones_are_type_errors_as_pythons_own(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match=r"fetch\(\)"):
            sent(lambda orders: orders.fetch(*args, **kwargs))

    def test_keyword_only_and_positional_only(self) -> None:
        with pytest.raises(TypeError):
            sent(lambda orders: orders.find("q", ["tags"]))  # type: ignore[misc, call-arg]
        with pytest.raises(TypeError):
            sent(lambda orders: orders.create(order=Order(1)))  # type: ignore[call-arg]
        assert sent(lambda orders: orders.create(Order(1), note="x")).url.query == b"note=x"
        assert sent(lambda orders: orders.create(Order(1), "y")).url.query == b"note=y"
        assert sent(lambda orders: orders.create(Order(1))).url.query == b"note=n"


def chunks() -> Iterator[bytes]:
    yield b"on"
    yield b"ce"


async def achunks() -> AsyncIterator[bytes]:
    for chunk in chunks():
        yield chunk


class TestStreamsUp:
    @pytest.mark.parametrize("source", [chunks, lambda: [b"on", b"ce"]], ids=["generator", "list"])
    def test_blocking(self, source: Callable[[], Iterable[bytes]]) -> None:
        request = sent(lambda orders: orders.upload(source()))
        assert request.content == b"once"
        assert request.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in request.headers

    def test_bytes_are_not_iterated(self) -> None:
        assert sent(lambda orders: orders.upload(b"once")).headers["content-length"] == "4"  # type: ignore[arg-type]

    def test_asynchronous(self) -> None:
        assert sent(lambda orders: asyncio.run(orders.aupload(achunks()))).content == b"once"  # type: ignore[arg-type]
        assert sent(lambda orders: asyncio.run(orders.aupload_blocking(chunks()))).content == b"once"  # type: ignore[arg-type]

    def test_an_asynchronous_one_in_a_blocking_call_is_a_clear_error(self) -> None:
        source = achunks()
        with pytest.raises(TypeError, match=r"upload\(\) is blocking"):
            sent(lambda orders: orders.upload(source))  # type: ignore[arg-type]
