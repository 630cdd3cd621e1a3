"""Every backend that can be registered with, as a fixture. A new one joins by adding a line to ENVIRONMENTS. (static:// takes
no registrations and has no key-value store; it has tests of its own.)"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshlib.backends import Backend, etcd_watch, open_backend
from meshlib.backends.local_db import Database
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer

_numbers = itertools.count(1)
PATIENT = 20.0
"""Seconds that a server has to answer: that a machine is slow is no fault of a backend."""


@dataclass
class Environment:
    """A running registry: how to open it, and names that no other test uses."""

    settings: Settings
    min_lock_ttl: float = 1.0
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def service(self) -> ServiceUrl:
        return ServiceUrl(f"orders-{self.number}")

    @property
    def prefix(self) -> str:
        return f"test/{self.number}/"

    def instance(self, name: str = "a", **fields: object) -> Instance:
        plain = {"service": self.service.service, "id": name, "host": "10.0.0.5", "port": 8080}
        return Instance.parse({**plain, **fields})


@contextmanager
def memory(tmp: Path) -> Iterator[Environment]:
    yield Environment(Settings(registry=f"memory://{tmp}"))


@contextmanager
def local(tmp: Path) -> Iterator[Environment]:
    yield Environment(Settings(registry=f"local://{tmp}/registry.db"))


@contextmanager
def consul(_: Path) -> Iterator[Environment]:
    with closing(ConsulServer()) as server:
        server.start()
        yield Environment(Settings(registry=server.url, registry_timeout=PATIENT), min_lock_ttl=10)


@contextmanager
def etcd(_: Path) -> Iterator[Environment]:
    server = EtcdServer()
    try:
        server.start()
        yield Environment(server.settings(registry_timeout=PATIENT), min_lock_ttl=2.0)
    finally:
        server.close()


ENVIRONMENTS: dict[str, Callable[[Path], AbstractContextManager[Environment]]] = {
    "memory": memory,
    "local": local,
    "consul": consul,
    "etcd": etcd,
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_watch, "LEADER", PATIENT)
    monkeypatch.setitem(Database.__init__.__kwdefaults__, "timeout", PATIENT)


@pytest.fixture(params=ENVIRONMENTS, scope="module")
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    with ENVIRONMENTS[request.param](tmp_path_factory.mktemp("registry")) as environment:
        yield environment


@pytest.fixture
def env(started: Environment) -> Environment:
    return Environment(started.settings, started.min_lock_ttl)


@pytest.fixture
async def backend(env: Environment) -> AsyncIterator[Backend]:
    backend = open_backend(env.settings)
    yield backend
    await backend.close()


@pytest.fixture
async def other(env: Environment) -> AsyncIterator[Backend]:
    """A second client of the same registry."""
    backend = open_backend(env.settings)
    yield backend
    await backend.close()
