"""Calls that are made wrongly, to whom nobody knows, or when it is too late."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Annotated, Protocol

from meshlib import ConfigError, Header, NoInstances, get, service_client
from meshlib.discovery.store import SnapshotStore
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.testing import MemoryMesh
from tests.mistakes.corpus import raises, warns

ORDERS = ServiceUrl("orders")


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int, tenant: Annotated[str, Header("X-Tenant")] = "a") -> str: ...

    @get("/orders")
    async def all(self) -> list[int]: ...


@raises(NoInstances, "ordrs: no instance is registered", "did you mean 'orders'?")
def service_with_a_typo() -> None:
    with MemoryMesh() as mesh, mesh.http("ordrs") as http:
        mesh.add("orders", lambda _: "tea")
        try:
            http.get("/")
        except NoInstances as error:
            raise NoInstances(str(error)) from None  # it is an error of the engine, too


@raises(ConfigError, "'orders' (from code)", "is not a declared client", '@service_client("orders")')
def client_of_a_name() -> None:
    with MemoryMesh() as mesh:
        mesh.client("orders")  # type: ignore[arg-type]


@raises(ConfigError, "Stock (from code)", "is not a declared client", '@service_client("orders")')
def client_that_is_not_declared() -> None:
    class Stock(Protocol):
        @get("/stock")
        def all(self) -> list[int]: ...

    with MemoryMesh() as mesh:
        mesh.client(Stock)


@raises(TypeError, "fetch()", "did you mean 'id', not 'idd'?")
def argument_with_a_typo() -> None:
    with MemoryMesh() as mesh:
        mesh.client(Orders).fetch(idd=7)  # type: ignore[call-arg]


@raises(RuntimeWarning, "coroutine 'Orders.all' was never awaited")
def coroutine_that_nobody_awaits() -> None:
    with MemoryMesh() as mesh, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mesh.client(Orders).all()
        gc.collect()
    told = [each.message for each in caught if "'Orders.all' was never awaited" in str(each.message)]  # nor others' garbage
    assert len(told) == 1
    raise told[0]  # type: ignore[misc]


@raises(ConfigError, "header X-Tenant (from code)", "holds a control character", "one line of text")
def line_break_in_an_argument() -> None:
    with MemoryMesh() as mesh:
        mesh.client(Orders).fetch(7, tenant="acme\r\nX-Admin: 1")


@raises(ConfigError, "fetch(id=…) (from code)", "'..' cannot stand in a path", "a plain value")
def argument_that_leaves_the_path() -> None:
    with MemoryMesh() as mesh:
        mesh.client(Orders).fetch("..")  # type: ignore[arg-type]


@raises(NoInstances, "orders: no list of instances yet", "the memory registry is down")
def nobody_and_no_registry() -> None:
    with MemoryMesh() as mesh:
        mesh.partition_registry()
        mesh.client(Orders).fetch(7)


@warns("orders: the registry is lost, nothing is known yet, trying again", "is MESH_REGISTRY=memory://", "(from code) right?")
def registry_that_is_not_there() -> None:
    with MemoryMesh() as mesh:
        mesh.partition_registry()
        mesh.snapshot("orders")


@warns("orders is called after its mesh was closed", "close the mesh after the last call, or once more")
def mesh_that_was_closed() -> None:
    with MemoryMesh() as mesh:
        mesh.add("orders", lambda _: "tea")
        orders = mesh.client(Orders)
        orders.fetch(7)
    orders.fetch(7)
    mesh.close()


# -- what is on the disk


def stored(directory: Path, *, age: float = 0.0) -> SnapshotStore:
    """The store that a process finds ``age`` seconds later."""
    times = iter([1000.0])
    store = SnapshotStore(directory, registry="consul://a", max_age=3600.0, clock=lambda: next(times, 1000.0 + age))
    store.save(Snapshot(ORDERS, (Instance("orders", "a", "10.0.0.1", 80),), confirmed=1000.0))
    return store


@warns("is 7200 s old and not used", "MESH_SNAPSHOT_MAX_AGE is 3600 s", "made anew once the registry answers")
def snapshot_that_is_too_old(tmp_path: Path) -> None:
    assert stored(tmp_path, age=7200.0).load(ORDERS) is None


@warns("is not used, and kept as orders.json.quarantined-", "to be looked at", "made anew once the registry answers")
def snapshot_that_is_damaged(tmp_path: Path) -> None:
    store = stored(tmp_path)
    (store.directory / "orders.json").write_text("{")
    assert store.load(ORDERS) is None


@warns("is not used", "can be written to by others", "(repair: chmod go-w ")
def state_directory_of_everybody(tmp_path: Path) -> None:
    store = stored(tmp_path)
    tmp_path.chmod(0o777)
    assert store.load(ORDERS) is None


@warns("is not used", "can be used by others", "(repair: chmod 600 ")
def snapshot_of_everybody(tmp_path: Path) -> None:
    store = stored(tmp_path)
    (store.directory / "orders.json").chmod(0o666)
    assert store.load(ORDERS) is None
