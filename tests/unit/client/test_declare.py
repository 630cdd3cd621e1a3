"""What a declaration may say, and how it is told what it may not."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from enum import Enum
from typing import Annotated, Any, Protocol, TypedDict

import msgspec
import pydantic
import pytest

from meshlib import Body, Header, Path, Query, ServiceUrl, delete, get, head, options, patch, post, put, service_client
from meshlib.client.declare import Declaration, Method
from meshlib.client.stub import declaration_of
from meshlib.errors import ConfigError


@dataclasses.dataclass
class Order:
    id: int


class Struct(msgspec.Struct):
    id: int


class Model(pydantic.BaseModel):
    id: int


class Typed(TypedDict):
    id: int


class Colour(Enum):
    RED = "red"


def declared(function: Any) -> Method:
    """The one method of a client that has ``function``."""
    cls = service_client("orders")(type("Orders", (Protocol,), {function.__name__: function}))
    return declaration_of(cls).methods[0]


def places(method: Method) -> dict[str, str]:
    return {one.name: type(one.place).__name__ for one in method.parameters}


class TestInference:
    @pytest.mark.parametrize(
        "hint", [str, int, float, bool, Colour, list[str], tuple[int, ...], set[int], str | None, list[int] | None]
    )
    def test_plain_values_are_query_fields(self, hint: Any) -> None:
        def find(self: Any, one: Any) -> None: ...

        find.__annotations__ = {"one": hint, "return": None}
        assert places(declared(post("/x")(find))) == {"one": "Query"}

    @pytest.mark.parametrize(
        "hint",
        [bytes, bytearray, dict, dict[str, int], Order, Struct, Model, Typed, list[Order], list[Model], Order | None, Any,
         Iterable[bytes], Iterator[bytes], list[dict[str, int]], tuple[Struct, ...]],
    )  # fmt: skip
    def test_structures_are_bodies(self, hint: Any) -> None:
        def send(self: Any, one: Any) -> None: ...

        send.__annotations__ = {"one": hint, "return": None}
        assert places(declared(post("/x")(send))) == {"one": "Body"}

    def test_all_places(self) -> None:
        @put("/c/{customer}/f/{rest:path}")
        def change(
            self: Any, customer: int, rest: str, order: Order, page: int = 1, *, x_tenant: Annotated[str, Header()] = "acme"
        ) -> None: ...

        method = declared(change)
        assert places(method) == {"customer": "Path", "rest": "Path", "order": "Body", "page": "Query", "x_tenant": "Header"}
        assert method.template == ("/c/", ("customer", False), "/f/", ("rest", True))
        assert method.parameters[-1].wire == "x-tenant"

    @pytest.mark.parametrize(
        ("hint", "place", "wire"),
        [(Annotated[str, Header], "Header", "one"), (Annotated[str, Header("X-A")], "Header", "X-A"),
         (Annotated[str, Header("X-A")] | None, "Header", "X-A"), (Annotated[str | None, Header("X-A")], "Header", "X-A"),
         (Annotated[str, Query("page_size")], "Query", "page_size"), (Annotated[str, Query], "Query", "one"),
         (Annotated[str, Body], "Body", "one"), (Annotated[str, Body()], "Body", "one"),
         (Annotated[str, "a comment"], "Query", "one")],
    )  # fmt: skip
    def test_markers(self, hint: Any, place: str, wire: str) -> None:
        def send(self: Any, one: Any) -> None: ...

        send.__annotations__ = {"one": hint, "return": None}
        method = declared(post("/x")(send))
        assert places(method) == {"one": place}
        assert method.parameters[0].wire == wire

    @pytest.mark.parametrize(
        ("verb", "name"),
        [
            (get, "GET"),
            (post, "POST"),
            (put, "PUT"),
            (patch, "PATCH"),
            (delete, "DELETE"),
            (head, "HEAD"),
            (options, "OPTIONS"),
        ],
    )
    def test_verbs(self, verb: Any, name: str) -> None:
        @verb("/x")
        def do(self: Any) -> None: ...

        assert declared(do).verb == name


def refused(function: Any, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declared(function)
    text = str(caught.value)
    assert function.__name__ in text, "names the method"
    assert "for example" in text
    for word in words:
        assert word in text


class TestRefusals:
    def test_no_verb(self) -> None:
        def fetch(self: Any) -> None: ...

        refused(fetch, "no verb")

    def test_no_verb_but_a_docstring(self) -> None:
        def fetch(self: Any) -> None:
            """Fetch it."""

        async def afetch(self: Any) -> None:
            """Fetch it."""

        refused(fetch, "no verb")
        refused(afetch, "no verb")

    @pytest.mark.parametrize("path", ["x", "/a b", "/a#b", "/é", "/{", "/{a-b}", "/{}", "/a\n"])
    def test_paths(self, path: str) -> None:
        @get(path)
        def fetch(self: Any) -> None: ...

        refused(fetch, "path")

    def test_no_hint(self) -> None:
        @get("/x")
        def fetch(self: Any, one) -> None: ...  # type: ignore[no-untyped-def]

        refused(fetch, "'one'", "no type hint")

    def test_variadic(self) -> None:
        @get("/x")
        def fetch(self: Any, *many: int) -> None: ...

        refused(fetch, "many")

    def test_path_parameters(self) -> None:
        @get("/{id}")
        def missing(self: Any) -> None: ...

        @get("/x")
        def extra(self: Any, id: Annotated[int, Path()]) -> None: ...

        refused(missing, "{id}")
        refused(extra, "{id}")

    def test_bodies(self) -> None:
        @get("/x")
        def on_get(self: Any, order: Order) -> None: ...

        @head("/x")
        def on_head(self: Any, order: Annotated[Order, Body()]) -> None: ...

        @post("/x")
        def two(self: Any, one: Order, other: Order) -> None: ...

        refused(on_get, "'order'", "Body()")
        refused(on_head, "HEAD")
        refused(two, "one, other")

    def test_two_places(self) -> None:
        @get("/x")
        def fetch(self: Any, one: Annotated[str, Query(), Header()]) -> None: ...

        refused(fetch, "several places")

    def test_header_names(self) -> None:
        @get("/x")
        def fetch(self: Any, one: Annotated[str, Header("a b")]) -> None: ...

        @post("/x")
        def smuggle(self: Any, one: Annotated[str, Header("Transfer-Encoding")]) -> None: ...

        refused(fetch, "'one'")
        refused(smuggle, "Transfer-Encoding")

    def test_blocking_and_asynchronous_do_not_mix(self) -> None:
        @post("/x")
        def upload(self: Any, chunks: AsyncIterable[bytes]) -> None: ...

        @get("/x")
        async def download(self: Any) -> Iterator[bytes]: ...  # type: ignore[empty-body]

        refused(upload, "blocking")
        refused(download, "AsyncIterator")

    def test_types_of_a_function_are_out_of_reach(self) -> None:
        @dataclasses.dataclass
        class Local:
            id: int

        @get("/x")
        def fetch(self: Any) -> Local: ...  # type: ignore[empty-body]

        refused(fetch, "Local", "module level")

    def test_a_hint_that_is_no_python(self) -> None:
        @get("/x")
        def fetch(self: Any) -> None: ...

        fetch.__annotations__ = {"return": "a b"}
        refused(fetch)

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "2"])
    def test_timeouts(self, timeout: Any) -> None:
        with pytest.raises(ConfigError, match="timeout"):
            service_client("orders", timeout=timeout)

    @pytest.mark.parametrize("headers", [{"a b": "x"}, {"A": "x\r\ny"}, {"A": "\u2028"}, {"A": 1}, {"Connection": "close"}])
    def test_fixed_headers(self, headers: Any) -> None:
        with pytest.raises(ConfigError, match="for example"):
            service_client("orders", headers=headers)

    def test_names_and_pickers(self) -> None:
        with pytest.raises(ConfigError):
            service_client("two.labels")
        with pytest.raises(ConfigError, match="picker"):
            service_client("orders", picker="rounds")(_Plain)

    def test_empty_and_undeclared(self) -> None:
        with pytest.raises(ConfigError, match="declares no method"):
            service_client("orders")(type("Empty", (Protocol,), {}))
        for nothing in (_Plain, "orders", lambda: 1):
            with pytest.raises(ConfigError, match="not a declared client"):
                declaration_of(nothing)


class _Plain(Protocol):
    @get("/x")
    def fetch(self) -> None: ...


@service_client("orders/a", timeout=2, picker="round_robin", headers={"X-A": "1"})
class Base(Protocol):
    @get("/x")
    def fetch(self) -> None: ...

    @get("/s")
    def stream(self) -> AsyncIterator[bytes]: ...

    def helper(self) -> int:
        return 7


@service_client("stock")
class Derived(Base, Protocol):
    @get("/y")
    def more(self) -> None: ...


class Undeclared(Base, Protocol):
    pass


def test_a_declaration() -> None:
    said = declaration_of(Base)
    assert isinstance(said, Declaration)
    assert (said.target, said.timeout, said.headers) == (ServiceUrl("orders", "", "a"), 2, ((b"X-A", b"1"),))
    assert {method.name: method.awaits for method in said.methods} == {"fetch": False, "stream": True}


def test_inheritance() -> None:
    said = declaration_of(Derived)
    assert said.target == ServiceUrl("stock")
    assert {method.name for method in said.methods} == {"fetch", "stream", "more"}
    with pytest.raises(ConfigError, match="not a declared client"):
        declaration_of(Undeclared)
