"""The management pages at a port of their own: what strangers may do to it is bounded."""

from __future__ import annotations

import http.client
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from meshlib import Mesh, PortInUse, Settings
from meshlib.management.listener import CONNECTIONS, HEAD
from tests.servers.base import eventually, free_port


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    registry, port = f"memory://{tmp_path}", free_port()
    settings = Settings(registry=registry, state_dir=str(tmp_path), host="127.0.0.1", management_port=port, service="shop")
    with Mesh(settings) as mesh:
        mesh.management.open()
        eventually(lambda: asked(mesh) == 200)
        yield mesh


def asked(mesh: Mesh, path: str = "/readyz") -> int:
    """The status, 0 for no answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", mesh.settings.management_port, timeout=30)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0


def connected(mesh: Mesh) -> socket.socket:
    return socket.create_connection(("127.0.0.1", mesh.settings.management_port), timeout=30)


def answer_to(mesh: Mesh, said: bytes) -> bytes:
    with connected(mesh) as connection:
        try:
            connection.sendall(said)
            return connection.recv(100)
        except ConnectionError:
            return b""


@pytest.mark.parametrize("said", [b"\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD + b"\r\n\r\n"])
def test_what_is_no_request_has_no_answer(mesh: Mesh, said: bytes) -> None:
    assert answer_to(mesh, said) == b""
    assert asked(mesh) == 200


def test_checks_are_made(mesh: Mesh) -> None:
    mesh.management.check("database", lambda: False)
    assert asked(mesh) == 503
    assert asked(mesh, "/healthz") == 200
    assert asked(mesh, "/other") == 404


def test_so_many_at_once(mesh: Mesh) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connected(mesh))
        eventually(lambda: asked(mesh) == 0, what="no place for another one")
    eventually(lambda: asked(mesh) == 200, what="they have gone")


def test_it_ends_with_the_mesh_and_can_begin_again(mesh: Mesh) -> None:
    mesh.close()
    assert asked(mesh) == 0
    mesh.register(8080)
    eventually(lambda: asked(mesh) == 200)


def test_a_child_lets_go_of_it(mesh: Mesh) -> None:
    """Or it would go on listening when its parent has ended."""
    ready, done = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; the child is not to use any
        child = os.fork()
    if child == 0:
        os.write(ready[1], b"1")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    mesh.close()
    status = asked(mesh)
    os.write(done[1], b"1")
    os.waitpid(child, 0)
    for each in (*ready, *done):
        os.close(each)
    assert status == 0


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(registry=f"memory://{tmp_path}", host="127.0.0.1", management_port=port, service="shop")
        with Mesh(settings) as mesh, pytest.raises(PortInUse, match=rf"MESH_MANAGEMENT_PORT .*{port}.*for example 9090"):
            mesh.register(8080)
        assert mesh._registrations == []
