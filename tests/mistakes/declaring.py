"""Clients that are declared wrongly."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from meshlib import Body, ConfigError, Path, Query, cache, fallback, get, head, keys, post, rate_limit, retry, service_client
from meshlib.testing import MemoryMesh
from tests.mistakes.corpus import raises, warns


@dataclass
class Order:
    id: int


def on_client(cls: Any) -> Any:
    """What a client of ``cls`` is made with."""
    with MemoryMesh() as mesh:
        return mesh.client(service_client("orders")(cls))


@raises(ConfigError, "Orders (from code)", "declares no method", '@get("/orders/{id}")')
def protocol_without_verbs() -> None:
    @service_client("orders")
    class Orders(Protocol):
        name: str


@raises(ConfigError, "Orders.fetch (from code)", "has no verb", '@get("/fetch")')
def method_without_a_verb() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders")
        def all(self) -> list[int]: ...
        def fetch(self, id: int) -> str: ...


@raises(ConfigError, "service_client (from code)", "Orders without the name of the service", '@service_client("orders")')
def service_client_without_parentheses() -> None:
    @service_client  # type: ignore[arg-type]
    class Orders(Protocol):
        @get("/orders")
        def all(self) -> list[int]: ...


@raises(ConfigError, "service_client (from code)", "which is no class", "class Orders(Protocol)")
def service_client_on_a_function() -> None:
    @service_client("orders")  # type: ignore[type-var]
    def orders() -> None: ...


@raises(ConfigError, "@get (from code)", "fetch in place of a path", '@get("/orders/{id}")')
def verb_without_parentheses() -> None:
    class Orders(Protocol):
        @get  # type: ignore[arg-type]
        def fetch(self) -> str: ...


@raises(ConfigError, "@get (from code)", "the property", "which is no method", "above a def")
def verb_above_a_property() -> None:
    class Orders(Protocol):
        @get("/orders")  # type: ignore[prop-decorator]
        @property
        def all(self) -> list[int]: ...


@raises(ConfigError, "@get (from code)", "the staticmethod", "which is no method", "above a def")
def verb_above_a_staticmethod() -> None:
    class Orders(Protocol):
        @get("/orders")
        @staticmethod
        def all() -> list[int]: ...


@raises(ConfigError, "Orders.all (from code)", "is a staticmethod, and no method", "a def with self")
def verb_below_a_staticmethod() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @staticmethod
        @get("/orders")
        def all() -> list[int]: ...


@raises(ConfigError, "@get (from code)", "which is no method", "above a def")
def verb_above_a_cache_of_another_library() -> None:
    class Orders(Protocol):
        @get("/orders")
        @functools.lru_cache  # noqa: B019
        def all(self) -> list[int]: ...


@raises(ConfigError, "Both.all (from code)", "is declared by", "Orders and by", "Stock: which is meant?", "two clients")
def two_clients_with_a_method_of_the_same_name_in_one() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders")
        def all(self) -> list[int]: ...

    @service_client("stock")
    class Stock(Protocol):
        @get("/stock")
        def all(self) -> list[int]: ...

    @service_client("both")
    class Both(Orders, Stock, Protocol): ...


@raises(ConfigError, "Orders.fetch (from code)", "the path has {id}, but no parameter fills it", "id: int")
def parameter_that_the_path_misses() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders/{id}")
        def fetch(self, number: int) -> str: ...


@raises(ConfigError, "Orders.fetch (from code)", "'id' is a path parameter, but the path has no {id}", '@get("/orders/{id}")')
def path_that_misses_a_parameter() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders")
        def fetch(self, id: Annotated[int, Path()]) -> str: ...


@raises(ConfigError, "Orders.fetch (from code)", "'orders/{id}' does not start with a slash", '@get("/orders/{id}")')
def path_without_a_slash() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("orders/{id}")
        def fetch(self, id: int) -> str: ...


@raises(ConfigError, "Orders.fetch (from code)", "has an unreadable placeholder", '@get("/orders/{id}")')
def placeholder_of_another_framework() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders/{id:int}")
        def fetch(self, id: int) -> str: ...


@raises(
    ConfigError, "Orders.find (from code)", "parameter 'order' is a body, and GET has none", "order: Annotated[..., Body()]"
)
def body_on_get() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders")
        def find(self, order: Order) -> list[int]: ...


@raises(ConfigError, "Orders.peek (from code)", "HEAD has no body, but parameter 'order' is one", '@post("/orders")')
def body_on_head() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @head("/orders")
        def peek(self, order: Annotated[Order, Body()]) -> None: ...


@raises(ConfigError, "Orders.put (from code)", "has several bodies: order, note", "note: Annotated[str, Query()]")
def two_bodies() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @post("/orders")
        def put(self, order: Order, note: Order) -> None: ...


@raises(ConfigError, "Orders.find (from code)", "parameter 'tag' goes to several places", "tag: Annotated[str, Query()]")
def parameter_in_two_places() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders")
        def find(self, tag: Annotated[str, Query(), Body()]) -> str: ...


@raises(ConfigError, "Orders.fetch (from code)", "parameter 'id' has no type hint", "id: int")
def parameter_without_a_hint() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders/{id}")
        def fetch(self, id) -> str: ...  # type: ignore[no-untyped-def]


@raises(ConfigError, "Orders.fetch (from code)", "'Missing' is not defined", "types defined at module level, above the client")
def hint_that_cannot_be_resolved() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders")
        def fetch(self) -> Missing: ...  # type: ignore[name-defined]  # noqa: F821


@raises(ConfigError, "Orders.find (from code)", "takes *tags, which says nothing of where it goes", "page: int")
def parameters_without_an_end() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/orders")
        def find(self, *tags: str) -> str: ...


@raises(ConfigError, "Orders.lines (from code)", "is async, but returns a blocking iterator", "-> AsyncIterator[bytes]")
def blocking_stream_of_an_async_method() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @get("/lines")
        async def lines(self) -> Iterator[bytes]: ...


@raises(ConfigError, "Orders.write (from code)", "is blocking, but its body is asynchronous", "async def, or Iterable[bytes]")
def asynchronous_body_of_a_blocking_method() -> None:
    @service_client("orders")
    class Orders(Protocol):
        @post("/lines")
        def write(self, lines: AsyncIterator[bytes]) -> None: ...


@raises(ConfigError, "header X-Tenant (from code)", "holds a control character", "one line of text")
def header_with_a_line_break() -> None:
    service_client("orders", headers={"X-Tenant": "acme\r\nX-Admin: 1"})


@raises(ConfigError, "header (from code)", "'X Tenant' is not a header name", "X-Tenant")
def header_with_a_space_in_its_name() -> None:
    service_client("orders", headers={"X Tenant": "acme"})


@raises(ConfigError, "timeout (from code)", "0 is not a positive number of seconds", "timeout=2.0")
def no_time_at_all() -> None:
    service_client("orders", timeout=0)


@warns("timeout is 2000 seconds, which is 33 minutes", "milliseconds?", "for example 2")
def milliseconds_in_place_of_seconds() -> None:
    service_client("orders", timeout=2000)


@raises(ConfigError, "service name (from code)", "'My Orders' is not of the form", "'orders', 'shop.prod.orders'")
def name_that_no_service_can_have() -> None:
    service_client("My Orders")


@raises(ConfigError, "picker (from code)", "'round_robbin' is none of peak_ewma, least_request", "for example round_robin")
def picker_that_is_written_wrongly() -> None:
    @service_client("orders", picker="round_robbin")
    class Orders(Protocol):
        @get("/orders")
        def all(self) -> list[int]: ...


@raises(ConfigError, "policies (from code)", "is not a policy", "policies=[retry(attempts=3)]")
def class_of_policies_in_place_of_one() -> None:
    service_client("orders", policies=[retry])  # type: ignore[list-item]


@raises(ConfigError, "policies (from code)", "is no list", "policies=[retry(attempts=3)]")
def policy_in_place_of_a_list() -> None:
    service_client("orders", policies=retry())  # type: ignore[arg-type]


@raises(ConfigError, "cache(methods=) (from code)", "nothing is kept of", "Orders.place, which is POST", 'methods=["POST"]')
def cache_on_post() -> None:
    class Orders(Protocol):
        @cache(60.0)
        @post("/orders")
        def place(self, order: Order) -> int: ...

    on_client(Orders)


@raises(ConfigError, "fallback(value=) (from code)", "'none' is not of the type that", "Orders.all returns", "fallback(list)")
def fallback_of_another_type() -> None:
    class Orders(Protocol):
        @fallback(value="none")
        @get("/orders")
        def all(self) -> list[int]: ...

    on_client(Orders)


@raises(ConfigError, "fallback(make=) (from code)", "later is async def, but", "Orders.all blocks", "a def")
def coroutine_under_a_blocking_client() -> None:
    async def later() -> list[int]:
        return []

    class Orders(Protocol):
        @fallback(later)
        @get("/orders")
        def all(self) -> list[int]: ...

    on_client(Orders)


@raises(ConfigError, "fallback(make=) (from code)", "wants 'number', and", "has no such argument", "error")
def fallback_that_wants_what_is_not_there() -> None:
    class Orders(Protocol):
        @fallback(lambda number: [number])
        @get("/orders/{id}")
        def of(self, id: int) -> list[int]: ...

    on_client(Orders)


@raises(ConfigError, "rate_limit(key=) (from code)", "is the parameter 'custmer', which", 'keys.parameter("customer")')
def key_for_a_parameter_that_is_not_there() -> None:
    class Orders(Protocol):
        @rate_limit("10/s", key=keys.parameter("custmer"))
        @get("/orders/{customer}")
        def of(self, customer: int) -> list[int]: ...

    on_client(Orders)
