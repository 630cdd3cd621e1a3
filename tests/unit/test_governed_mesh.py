"""A mesh under policy documents, over the memory registry."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest

from meshlib import ConfigError, Mesh, RateLimited, Settings, get, rate_limit, retry, service_client, timeout
from meshlib.backends import memory
from meshlib.client.stack import Stack
from tests.servers.base import eventually


@retry(3, base=0.1)
@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> dict[str, int]: ...
    @timeout(60.0)
    @get("/slow")
    def slow(self) -> dict[str, int]: ...


def answer(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={})


def made(tmp_path: Path, **settings: Any) -> Mesh:
    chosen = Settings(**{"registry": f"memory://{tmp_path}", "state_dir": str(tmp_path), "service": "orders", "port": 8080,
                         **settings})  # fmt: skip
    return Mesh(chosen, transport=lambda _: httpx2.MockTransport(answer))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with made(tmp_path, cold_start_grace=20.0) as mesh:
        mesh.register().wait(30)
        yield mesh


def version(mesh: Mesh) -> int:
    book = mesh._office._books.get(mesh.view("orders").service)
    return 0 if book is None or book.document is None else book.document.version


def used(http: httpx2.Client) -> bool:
    with pytest.raises(httpx2.ConnectError):
        http.get("/")
    return True


def limited(rate: str, **fields: Any) -> dict[str, Any]:
    return {"consumer": {"policies": {"rate_limit": {"limits": [rate]}, "retry": {"attempts": 7}}}, **fields}


def test_a_change_is_in_force_at_every_client_of_the_service(mesh: Mesh) -> None:
    orders, http = mesh.client(Orders), mesh.http("orders")
    for _ in range(3):
        orders.fetch(1)
    mesh.policies.put("orders", limited("1/h"))
    eventually(lambda: version(mesh) == 1)
    for call in (lambda: orders.fetch(1), orders.slow, lambda: http.get("/")):
        call()
        with pytest.raises(RateLimited):
            call()
    mesh.policies.delete("orders")
    eventually(lambda: version(mesh) == 2)
    orders.fetch(1)
    eventually(lambda: mesh.events.counts()["governance.applied", "orders", ""] == 2)  # it is said after it is done


def test_explain_says_which_document_is_in_force_and_what_it_set(mesh: Mesh) -> None:
    orders = mesh.client(Orders)
    mesh.policies.put("orders", {"consumer": {"policies": {"retry": {"attempts": 7}}, "methods": {
        "Orders.slow": {"timeout": None, "bulkhead": {"limit": 2}}}}})  # fmt: skip
    eventually(lambda: version(mesh) == 1)
    orders.fetch(1)
    fetch, slow = mesh.explain("orders").ways
    assert fetch.policies == (retry(7, base=0.1),)
    assert str(fetch).splitlines()[:2] == [
        "Orders.fetch: retry", "  policy document, version 1 (kv, enforce): retry(attempts)",
    ]  # fmt: skip
    assert slow.origin is not None
    assert (slow.origin.off, [each.kind for each in slow.policies]) == (("timeout",), ["retry", "bulkhead"])
    mesh.policies.put("orders", limited("1/h", mode="shadow"))
    eventually(lambda: version(mesh) == 2)
    assert "Orders.fetch: retry, rate_limit (shadow)\n  policy document, version 2 (kv, shadow)" in str(mesh.explain("orders"))


def test_shadow_mode(mesh: Mesh) -> None:
    http = mesh.http("orders")
    mesh.policies.put("orders", limited("2/h", mode="shadow"))
    http.get("/")
    eventually(lambda: version(mesh) == 1)
    for _ in range(5):
        assert http.get("/").status_code == 200
    assert mesh.events.counts()["shadow.refused", "orders", ""] == 4


def test_a_bad_push_is_an_alarm_and_changes_nothing(mesh: Mesh) -> None:
    http = mesh.http("orders", policies=[rate_limit("1/h")])
    http.get("/")
    mesh.policies.put("orders", {"consumer": {"policies": {"rate_limit": {"wait": 0.0}}}})
    eventually(lambda: version(mesh) == 1)
    entries = memory.store(mesh.settings.registry.path)
    _write(entries, b'{"version": 2, "consumer": {"policies": {"rate_limit": null, "retry": {"attempts": 0}}}}')
    eventually(lambda: mesh.events.counts().get(("governance.rejected", "orders", "")))
    with pytest.raises(RateLimited):
        http.get("/")
    assert version(mesh) == 1


def _write(store: memory.Store, value: bytes) -> None:
    with store.lock:
        store.entries["policies/-/orders/current"] = memory.Entry("policies/-/orders/current", value, store.touch())


def test_a_mesh_that_starts_with_the_store_dead_decides_the_same_from_its_first_call(tmp_path: Path, mesh: Mesh) -> None:
    """Negative control: with documents off it does not."""
    mesh.http("orders").get("/")
    mesh.policies.put("orders", limited("1/h"))
    eventually(lambda: version(mesh) == 1 and list(tmp_path.rglob("policies/*/orders.json")))
    eventually(lambda: list(tmp_path.rglob("snapshots/*/orders.json")))
    memory.store(mesh.settings.registry.path).set_down(True)
    for policies, refused in (("on", True), ("off", False)):
        with made(tmp_path, policies=policies) as late:
            http = late.http("orders")
            http.get("/")
            if refused:
                with pytest.raises(RateLimited):
                    http.get("/")
                assert "version 1 (disk, enforce)" in str(late.explain("orders"))
            else:
                http.get("/")
                assert not late._office._books
    memory.store(mesh.settings.registry.path).set_down(False)


def test_what_is_not_used_any_more_is_not_followed(tmp_path: Path) -> None:
    with made(tmp_path, watch_idle=0.02) as mesh:
        clients = [mesh.http("orders")]
        assert used(clients[0])
        memory.store(mesh.settings.registry.path).wake()
        eventually(lambda: len(mesh._office._books) == 1)
        eventually(lambda: (memory.store(mesh.settings.registry.path).wake(), not mesh.view("orders").followed)[1])
        eventually(lambda: not memory.store(mesh.settings.registry.path).watchers)
        mesh.policies.put("orders", limited("1/h"))
        assert version(mesh) == 0
        eventually(lambda: used(clients[0]) and version(mesh) == 1)  # again and again: it is soon idle
        clients.clear()
        mesh.close()
        eventually(lambda: gc.collect() >= 0 and not mesh._office._books)


def test_a_registry_without_a_key_value_store(tmp_path: Path) -> None:
    with made(tmp_path, registry="static://orders=10.0.0.1:80") as mesh:
        assert mesh.http("orders").get("/").status_code == 200
        with pytest.raises(ConfigError, match="static:// has no key-value store"):
            mesh.policies.get("orders")


def test_operators_need_no_await(mesh: Mesh) -> None:
    policies = mesh.policies
    assert policies.get("orders") is None
    first = policies.put("orders", "version: 4\nnote: first", expected=0)
    policies.put("orders", limited("1/s"), note="second")
    assert policies.names() == ["orders"]
    assert [(past.version, past.note) for past in policies.history("orders")] == [(5, "second"), (4, "first")]
    assert "second" in policies.diff("orders", 4)
    assert policies.rollback("orders", 4, expected=5).version == 6
    assert policies.delete("orders").version == 7
    assert policies.validate("orders", first.content).version == 4


def test_a_child_process_goes_on_with_what_holds(mesh: Mesh) -> None:
    http = mesh.http("orders")
    http.get("/")
    mesh.policies.put("orders", limited("1/h"))
    eventually(lambda: version(mesh) == 1)
    mesh._office._lock.acquire()  # a thread of the parent has the locks
    child = os.fork()
    if child == 0:
        code = 1
        try:
            again = mesh.http("orders")
            again.get("/")
            again.get("/")
        except RateLimited:
            code = 0
        finally:
            os._exit(code)
    mesh._office._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("held", [True, False], ids=["held", "negative control: not held"])
def test_the_first_call_of_a_new_machine_is_under_the_document(
    tmp_path: Path, mesh: Mesh, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is on its disk; calls wait a moment for the store before they enter their layers."""
    mesh.policies.put("orders", {"consumer": {"policies": {"route": {"rules": [{"to": {"zone": "z", "strict": True}}]}}}})
    if not held:
        monkeypatch.setattr(Stack, "hold", lambda *_: None)
    with made(tmp_path, state_dir=str(tmp_path / "new"), cold_start_grace=20.0) as new:
        http = new.http("orders")
        if held:
            with pytest.raises(httpx2.ConnectError, match="zone"):
                http.get("/")
        else:
            assert http.get("/").status_code == 200


def test_a_store_that_says_nothing_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> Any:
        await asyncio.Event().wait()
        yield ()

    monkeypatch.setattr(memory.MemoryKeyValue, "watch", silent)
    with made(tmp_path, cold_start_grace=0.05) as mesh:
        mesh.register().wait(30)
        http, other = mesh.http("orders"), mesh.client(Orders)
        assert http.get("/").status_code == 200
        assert other.slow() == {}
        assert all(stack.proceed.__name__ != "held" for stack in mesh._stacks_known)  # type: ignore[attr-defined]
