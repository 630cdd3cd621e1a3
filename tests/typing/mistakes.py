"""A consumer's mistakes: a line that says ``# E:`` has the error of mypy's and of pyright's named there, and no other line has
one. (A dash: that checker says nothing of it.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from meshlib import (
    Match,
    Mesh,
    Mirror,
    Rule,
    Subset,
    bulkhead,
    circuit_breaker,
    get,
    hedge,
    keys,
    pickers,
    post,
    rate_limit,
    retry,
    route,
    service_client,
    timeout,
)
from meshlib.testing import MemoryMesh


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> str: ...

    @get("/orders")
    async def find(self, tag: str = "", *, size: int = 10) -> list[str]: ...

    @get("/export")
    def export(self) -> Iterator[bytes]: ...

    @get("/events")
    def events(self) -> AsyncIterator[str]: ...


class Incomplete:
    def fetch(self, id: int) -> str:
        return str(id)


class Blocking(Incomplete):
    def find(self, tag: str = "", *, size: int = 10) -> list[str]:
        return []

    def export(self) -> Iterator[bytes]:
        yield b""

    async def events(self) -> AsyncIterator[str]:
        yield ""


def use(mesh: Mesh, orders: Orders) -> None:
    orders.fetch("1")  # E: arg-type reportArgumentType
    orders.fetch()  # E: call-arg reportCallIssue
    orders.fetch(1, 2)  # E: call-arg reportCallIssue
    orders.fetch(number=1)  # E: call-arg reportCallIssue
    orders.delete(1)  # E: attr-defined reportAttributeAccessIssue
    number: int = orders.fetch(1)  # E: assignment reportAssignmentType
    print(number + 1)
    print(orders.fetch(1).real)  # E: attr-defined reportAttributeAccessIssue
    for order in orders.find():  # E: attr-defined reportGeneralTypeIssues
        print(order)
    text: str = next(orders.export())  # E: assignment reportAssignmentType
    print(text)
    for event in orders.events():  # E: attr-defined reportGeneralTypeIssues
        print(event)
    use(mesh, Incomplete())  # E: arg-type reportArgumentType
    use(mesh, Blocking())  # E: arg-type reportArgumentType
    other: Incomplete = mesh.client(Orders)  # E: assignment reportAssignmentType
    print(other)
    mesh.client("orders")  # E: arg-type reportArgumentType
    mesh.client(Orders, nam="orders")  # E: call-arg reportCallIssue
    mesh.http("orders", policies=["retry"])  # E: list-item reportArgumentType
    mesh.http("orders", picker=7)  # E: arg-type reportArgumentType
    mesh.http("orders").fetch(1)  # E: attr-defined reportAttributeAccessIssue
    mesh.register(port="8080")  # E: arg-type reportArgumentType


async def use_async(mesh: Mesh, orders: Orders) -> None:
    orders.find()  # E: unused-coroutine reportUnusedCoroutine
    await orders.fetch(1)  # E: misc reportGeneralTypeIssues
    found: list[str] = orders.find()  # E: assignment reportAssignmentType
    print(found)
    len(orders.find())  # E: arg-type reportArgumentType
    (await orders.find()).keys()  # E: attr-defined reportAttributeAccessIssue
    await orders.find("new", 5)  # E: call-arg reportCallIssue
    await orders.find(size="5")  # E: arg-type reportArgumentType
    await orders.events()  # E: misc reportGeneralTypeIssues
    mesh.aclose()  # E: unused-coroutine reportUnusedCoroutine


@service_client("orders", timout=2.0)  # E: call-arg reportCallIssue
class Misspelt(Protocol):
    @get("/orders")
    def find(self) -> str: ...


@service_client("orders", picker=round)  # E: arg-type reportArgumentType
class OddPicker(Protocol):
    @get("/orders")
    def find(self) -> str: ...


@service_client(7)  # E: arg-type reportArgumentType
class Numbered(Protocol):
    @get("/orders")
    def find(self) -> str: ...


@service_client("orders", policies=timeout(2.0))  # E: arg-type reportArgumentType
class NoList(Protocol):
    @post("/orders")
    def find(self) -> str: ...


@get(1)  # E: arg-type reportArgumentType
def free() -> None: ...


@retry(attempts=3)
def plain(page: str) -> int:
    return len(page)


@timeout(1.0)
async def waiting(page: str) -> int:
    return len(page)


plain(7)  # E: arg-type reportArgumentType
plain("a").upper()  # E: attr-defined reportAttributeAccessIssue
plain("a", "b")  # E: call-arg reportCallIssue
waiting("a") + 1  # E: operator reportOperatorIssue
retry(attempt=3)  # E: call-arg reportCallIssue
retry(attempts="3")  # E: arg-type reportArgumentType
retry(3, 4)  # E: arg-type,call-arg reportCallIssue
retry()(7)  # E: type-var reportArgumentType
timeout()  # E: call-arg reportCallIssue
timeout("2s")  # E: arg-type reportArgumentType
circuit_breaker(failure_rates=0.5)  # E: call-arg reportCallIssue
circuit_breaker(failure_rate="half")  # E: arg-type reportArgumentType
hedge(delays=0.1)  # E: call-arg reportCallIssue
hedge(delay="0.1")  # E: arg-type reportArgumentType
bulkhead(20, waits=1)  # E: call-arg reportCallIssue
bulkhead("20")  # E: arg-type reportArgumentType
rate_limit(100)  # E: arg-type reportArgumentType
rate_limit("1/s", scope=1)  # E: arg-type reportArgumentType
rate_limit("1/s", key=7)  # E: arg-type reportArgumentType
keys.header(7)  # E: arg-type reportArgumentType
pickers.ConsistentHash(loads=1.25)  # E: call-arg reportCallIssue
route(Subset())  # E: arg-type reportArgumentType
Rule(when={"method": "GET"})  # E: arg-type reportArgumentType
Rule(mirrors=Mirror(service="b"))  # E: call-arg reportCallIssue
Match(header={})  # E: call-arg reportCallIssue


def test_mocks(mesh: MemoryMesh) -> None:
    mock = mesh.mock(Orders)
    mock.on(Orders.fetch).returns(7)  # E: arg-type reportArgumentType
    mock.on(Orders.find).returns("a")  # E: arg-type reportArgumentType
    mock.on(Orders.find).in_turn(["a"], 7)  # E: arg-type reportArgumentType
    mock.on(Orders.export).returns(["a"])  # E: list-item reportArgumentType
    mock.on(Orders.fetch).raises(7)  # E: arg-type reportArgumentType
    mock.on(Orders.fetch).answers(lambda: "a")  # E: arg-type reportArgumentType
    mock.on(Orders.fetch).assert_called_with("a")  # E: arg-type reportArgumentType
    mock.on(Orders.fetsch)  # E: attr-defined reportAttributeAccessIssue
    mock.client.fetch("a")  # E: arg-type reportArgumentType
    mesh.kill(0)  # E: arg-type reportArgumentType
    mesh.slow("orders", 0, "1 s")  # E: arg-type reportArgumentType
    mesh.aadvance(1.0)  # E: unused-coroutine reportUnusedCoroutine
