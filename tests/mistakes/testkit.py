"""The test kit, misused."""

from __future__ import annotations

import asyncio
from typing import Protocol

from meshlib import ConfigError, get, service_client
from meshlib.testing import MemoryMesh
from tests.mistakes.corpus import raises


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> str: ...


@raises(ConfigError, "ordrs (from code)", "was not added to this mesh (which has: orders)", 'mesh.add("ordrs", app)')
def fault_of_whom_nobody_added() -> None:
    with MemoryMesh() as mesh:
        mesh.add("orders", lambda _: "tea")
        mesh.kill("ordrs")


@raises(ConfigError, "orders number 2 (from code)", "it has 0 to 1", "for example 0")
def instance_that_is_not_there() -> None:
    with MemoryMesh() as mesh:
        mesh.add("orders", lambda _: "tea", instances=2)
        mesh.kill("orders", 2)


@raises(ConfigError, "app (from code)", "is neither a WSGI app, an ASGI app nor a function", "lambda request")
def app_that_is_none() -> None:
    with MemoryMesh() as mesh:
        mesh.add("orders", {"id": 7})


@raises(ConfigError, "registri (from code)", "is not a setting", "registry")
def setting_with_a_typo() -> None:
    MemoryMesh(registri="memory://")


@raises(AttributeError, "Orders declares no method 'fetsh'", "it has fetch")
def mock_of_a_method_that_is_not_there() -> None:
    with MemoryMesh() as mesh:
        mesh.mock(Orders).fetsh.returns("tea")


@raises(TypeError, "Orders.fetch returns str, and 7 is none")
def mock_that_returns_another_type() -> None:
    with MemoryMesh() as mesh:
        mesh.mock(Orders).fetch.returns(7)


@raises(AssertionError, "Orders.fetch was called as call(id=7), and has no answer", "mock.fetch.returns(")
def mock_without_an_answer() -> None:
    with MemoryMesh() as mesh:
        mesh.mock(Orders)
        mesh.client(Orders).fetch(7)


@raises(AssertionError, "Orders.fetch: call 2 is one more than the 1 answers in_turn(")
def mock_with_too_few_answers() -> None:
    with MemoryMesh() as mesh:
        mesh.mock(Orders).fetch.in_turn("tea")
        orders = mesh.client(Orders)
        orders.fetch(7)
        orders.fetch(7)


@raises(RuntimeError, "time is frozen by this thread, which now waits for it")
def waiting_while_time_is_frozen() -> None:
    with MemoryMesh() as mesh, mesh.frozen():
        mesh.sleep(1.0)


@raises(RuntimeError, "tasks wait for this time", "`await mesh.aadvance(…)`")
def advance_that_blocks_the_tasks() -> None:
    async def main() -> None:
        with MemoryMesh() as mesh, mesh.frozen():
            task = asyncio.create_task(mesh.asleep(5.0))
            await asyncio.sleep(0)
            try:
                mesh.advance(5.0)
            finally:
                task.cancel()

    asyncio.run(main())


@raises(ValueError, "-1 s: a clock does not go backwards")
def time_that_goes_backwards() -> None:
    with MemoryMesh() as mesh:
        mesh.advance(-1)
