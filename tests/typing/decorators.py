"""Decorators as type checkers see them: what stands under a policy or a verb keeps its type, parameters and all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol, assert_type, overload

from meshlib import Mesh, bulkhead, circuit_breaker, get, hedge, keys, post, rate_limit, retry, route, service_client, timeout


@circuit_breaker(failure_rate=0.5)
@rate_limit("100/s", key=keys.parameter("page"))
@bulkhead(20)
def render(page: str, *, customer: int = 0) -> bytes:
    return f"{page} {customer}".encode()


@retry(attempts=3)
@timeout(2.0)
async def load(page: str, *rest: int, **more: str) -> list[int]:
    return [len(page), *rest, len(more)]


@bulkhead(2)
def lines(count: int) -> Iterator[str]:
    yield from "a" * count


@bulkhead(2)
async def ticks(count: int, /) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@overload
def double(value: int) -> int: ...
@overload
def double(value: str) -> str: ...
@retry()
def double(value: int | str) -> int | str:
    return value * 2


class Shop:
    @retry()
    def price(self, item: str) -> float:
        return float(len(item))

    @timeout(1.0)
    async def order(self, item: str, count: int = 1) -> bool:
        return len(item) == count

    @staticmethod
    @rate_limit("1/s")
    def tax(price: float) -> float:
        return price * 0.2

    @classmethod
    @bulkhead(1)
    def open(cls, name: str) -> Shop:
        return cls()

    @property
    @retry()
    def size(self) -> int:
        return 1


@retry()
@service_client("orders", policies=[timeout(2.0), retry(attempts=2)])
class Orders(Protocol):
    @hedge(quantile=0.95)
    @get("/orders/{id}")
    def fetch(self, id: int) -> str: ...

    @route()
    @post("/orders")
    async def create(self, order: dict[str, str]) -> int: ...


assert_type(render("a", customer=1), bytes)
assert_type(lines(2), Iterator[str])
assert_type(ticks(2), AsyncIterator[int])
assert_type(double(1), int)
assert_type(double("a"), str)
assert_type(Shop().price("tea"), float)
assert_type(Shop.tax(1.0), float)
assert_type(Shop.open("a"), Shop)
assert_type(Shop().size, int)

plain: Callable[[str], bytes] = render
method: Callable[[Shop, str], float] = Shop.price
bound: Callable[[str, int], Coroutine[Any, Any, bool]] = Shop().order
policies = [retry(attempts=3), timeout(1.0), hedge(), bulkhead(3), rate_limit("1/s"), route()]


async def use(mesh: Mesh) -> None:
    assert_type(await load("a", 1, 2, x="y"), list[int])
    assert_type(await Shop().order("tea", count=2), bool)
    orders = mesh.client(Orders)
    assert_type(orders, Orders)
    assert_type(orders.fetch(id=1), str)
    assert_type(await orders.create({"id": "1"}), int)
    mesh.http("orders", policies=[retry(), timeout(1.0)])
