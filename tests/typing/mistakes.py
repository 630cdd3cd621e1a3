"""A consumer's mistakes: each line that says so has the error named there, and no other line has one."""

from __future__ import annotations

from typing import Protocol

from meshlib import Mesh, get, service_client


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> str: ...

    @get("/orders")
    async def find(self) -> list[str]: ...


class Incomplete:
    def fetch(self, id: int) -> str:
        return str(id)


def use(mesh: Mesh, orders: Orders) -> None:
    orders.fetch("1")  # error: arg-type
    orders.fetch()  # error: call-arg
    orders.delete(1)  # error: attr-defined
    number: int = orders.fetch(1)  # error: assignment
    print(number)
    for order in orders.find():  # error: attr-defined
        print(order)
    use(mesh, Incomplete())  # error: arg-type
    other: Incomplete = mesh.client(Orders)  # error: assignment
    print(other)


@service_client("orders", timout=2.0)  # error: call-arg
class Misspelt(Protocol):
    @get("/orders")
    def find(self) -> str: ...


@get(1)  # error: arg-type
def free() -> None: ...
