"""Providers: where they listen, and what they register."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

from meshlib import ConfigError, Mesh, PortInUse, Settings, rate_limit, retry
from meshlib.discovery.registration import Reconciler
from meshlib.testing import MemoryMesh
from tests.mistakes.corpus import raises, warns


def app(environ: Any, start_response: Any) -> Any: ...


@raises(ConfigError, "MESH_SERVICE (from code)", "is not set, so there is no name to register", "orders")
def registering_without_a_name() -> None:
    with MemoryMesh() as mesh:
        mesh.register(8080)


@raises(ConfigError, "MESH_PORT (from code)", "is not set, so there is no port to register", "register(port=8080)")
def registering_without_a_port() -> None:
    with MemoryMesh(service="orders") as mesh:
        mesh.register()


@raises(ConfigError, "port (from code)", "'80' is not a port", "8080")
def port_as_text() -> None:
    with MemoryMesh(service="orders") as mesh:
        mesh.register("80")  # type: ignore[arg-type]


@raises(ConfigError, "port (from code)", "8080 is registered by this process already", "close() that one first")
def two_apps_on_one_port() -> None:
    with MemoryMesh(service="orders") as mesh, mesh.register(8080), mesh.register(8080):
        pass


@raises(PortInUse, "MESH_PORT (from code)", "cannot listen on 127.0.0.1:", "in use", "another port, or 0")
def port_that_is_taken() -> None:
    with MemoryMesh(host="127.0.0.1") as mesh, closing(mesh.listen(0)) as taken:
        mesh.listen(taken.getsockname()[1])


@raises(PortInUse, "MESH_MANAGEMENT_PORT (from code)", "cannot listen on 127.0.0.1:", "in use", "9090")
def management_port_that_is_taken(tmp_path: Path) -> None:
    with MemoryMesh(host="127.0.0.1") as other, closing(other.listen(0)) as taken:
        port = taken.getsockname()[1]
        with MemoryMesh(service="orders", host="127.0.0.1", management_port=port) as mesh:
            mesh.register(8080)


@raises(ConfigError, "MESH_HOST (from code)", "cannot listen on 192.0.2.1:", "0.0.0.0, or an address of this machine")
def address_of_another_machine() -> None:
    with MemoryMesh(host="192.0.2.1") as mesh:
        mesh.listen(0)


@warns("MESH_PORT (from environment) is set, but MESH_SERVICE is not", "nobody can call it by name", "MESH_SERVICE=orders")
def server_without_a_name() -> None:
    settings = Settings.load(environ={"MESH_PORT": "8000", "MESH_REGISTRY": "memory://"})
    with Mesh(settings) as mesh:
        mesh.announce()
        mesh.announce()


class Remote:
    """A registry on another machine."""

    routes = (("192.0.2.1", 8500),)


@warns("127.0.0.1 is a loopback address", "the registry is on another machine", "MESH_ADVERTISE", "10.0.0.5:8080")
def loopback_for_a_registry_elsewhere() -> None:
    async def registry() -> Any:
        return Remote()

    settings = Settings(service="orders", registry="consul://192.0.2.1", advertise="127.0.0.1:80")
    asyncio.run(Reconciler(settings, registry, port=80, generation="1")._describe(Remote()))  # type: ignore[arg-type]


@raises(ConfigError, "policies (from code)", "retry cannot stand on a provider", "policies=[bulkhead(20)]")
def retry_of_requests() -> None:
    with MemoryMesh() as mesh:
        mesh.wsgi(app, policies=[retry(attempts=3)])


@raises(ConfigError, "policies (from code)", "is not a policy", "policies=[retry(attempts=3)]")
def policy_of_a_provider_that_is_text() -> None:
    with MemoryMesh() as mesh:
        mesh.wsgi(app, policies=["100/s"])  # type: ignore[list-item]


@raises(ConfigError, "check database (from code)", "timeout=0 is not a positive number of seconds", "2.0")
def health_check_without_time() -> None:
    with MemoryMesh() as mesh:
        mesh.management.check("database", print, timeout=0)


@raises(ConfigError, "check (from code)", "'data base' is no name for one", "database")
def health_check_with_a_space() -> None:
    with MemoryMesh() as mesh:
        mesh.management.check("data base", print)


@raises(ConfigError, "check database (from code)", "3 cannot be called", "def or async def")
def health_check_that_was_called() -> None:
    with MemoryMesh() as mesh:
        mesh.management.check("database", 3)  # type: ignore[arg-type]


limited = rate_limit("10/s")
