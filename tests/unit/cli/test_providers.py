"""drain and maintenance: who is meant, and what is not possible. Real processes are told in tests/integration/test_cli.py."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from meshlib.backends import memory
from meshlib.backends.memory import MemoryRegistry, Store
from meshlib.cli import providers
from meshlib.cli.facts import Failure, Wishes
from meshlib.cli.providers import listens
from meshlib.model import Instance, Status
from tests.unit.cli.said import Run


@pytest.mark.parametrize("words", [["orders/a"], ["a"], ["mesh://orders/a"]])
def test_one_is_meant_and_cannot_be_told_from_here(words: list[str], mesh: Run, orders: list[Instance]) -> None:
    said = mesh("drain", *words, "--json")
    (told,) = said.fact(Wishes).told
    assert (said.code, told.instance, told.how, told.wish) == (1, "orders/a", "", "draining")
    assert "MESH_STATE_DIR" in told.problem
    assert "not done" in mesh("drain", *words).out


def test_all_of_a_service(mesh: Run, orders: list[Instance]) -> None:
    told = mesh("maintenance", "--service", "orders", "--json").fact(Wishes).told
    assert [(one.instance, one.wish) for one in told] == [("orders/a", "maintenance"), ("orders/b", "maintenance")]


def test_nobody_of_that_name(mesh: Run, orders: list[Instance]) -> None:
    said = mesh("drain", "orders/c", "--json")
    assert (said.code, said.fact(Wishes).told) == (1, [])


@pytest.mark.parametrize("words", [[], ["orders/a", "--service", "orders"]])
def test_one_or_a_service_is_needed(words: list[str], mesh: Run) -> None:
    said = mesh("drain", *words, "--json")
    assert (said.code, said.fact(Failure).error.name) == (2, "INSTANCE")


def test_a_registry_that_can_do_it_itself(
    mesh: Run, orders: list[Instance], shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Maintaining(MemoryRegistry):  # a class of its own: Python remembers of each whether it is one that maintains
        async def maintain(self, instance: Instance, on: bool) -> None:
            changed = replace(instance, status=Status.MAINTENANCE if on else Status.UP)
            self.store.instances["", "orders", instance.id] = (changed, float("inf"))

    monkeypatch.setattr(memory, "MemoryRegistry", Maintaining)
    (told,) = mesh("maintenance", "orders/a", "--json").fact(Wishes).told
    assert (told.how, told.seen) == ("registry", True)
    assert mesh("instances", "orders", "--json").document["instances"][0]["status"] == "maintenance"
    assert mesh("maintenance", "--off", "orders/a").code == 0
    (told,) = mesh("drain", "orders/a", "--json").fact(Wishes).told
    assert (told.how, "maintenance" in told.problem) == ("", True)


def test_what_is_not_seen_is_not_done(mesh: Run, orders: list[Instance], monkeypatch: pytest.MonkeyPatch) -> None:
    class Ignoring(MemoryRegistry):
        async def maintain(self, instance: Instance, on: bool) -> None: ...

    monkeypatch.setattr(memory, "MemoryRegistry", Ignoring)
    said = mesh("maintenance", "orders/a", "--wait", "0", "--json")
    (told,) = said.fact(Wishes).told
    assert (said.code, told.how, told.seen) == (1, "registry", False)


def test_register_only_what_listens(mesh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "listens", lambda _: False)
    said = mesh("register", "users", "--port", "8080", "--json")
    assert (said.code, said.fact(Failure).error.name) == (2, "--port")
    monkeypatch.setattr(providers, "listens", lambda _: True)
    assert mesh("register", "users", "--port", "8080", "--seconds", "0", "--json").code == 0
    assert mesh("register", "Users", "--port", "8080", "--json").fact(Failure).error.name == "MESH_SERVICE"


def test_who_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Connection:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def connect(address: tuple[str, int], timeout: float) -> Connection:
        tried.append(address[0])
        if address[0] != "::1":
            raise OSError("refused")
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert listens(8080)
    assert tried == ["127.0.0.1", "::1"]
