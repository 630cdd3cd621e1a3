"""The instruments themselves: what the fault tests call a cut must be one."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from random import Random

import pytest

from tests.faults.network import Namespace, Unavailable
from tests.servers.proxy import Proxy

PATIENCE = 60.0
"""Seconds for what must come."""
QUIET = 0.4
"""Seconds without a byte that are silence."""

ECHO = """
import socket, sys, threading
def echo(one):
    while chunk := one.recv(100):
        seen.append(chunk)
        one.sendall(chunk)
seen = []
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
threading.Thread(target=lambda: [threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
                                 for _ in iter(int, 1)], daemon=True).start()
for _ in sys.stdin:
    print(b"".join(seen).decode(), flush=True)
"""


class Echo:
    """A process that sends back what it gets, and tells what it got."""

    def __init__(self, host: str, *within: str) -> None:
        self.process = subprocess.Popen([*within, sys.executable, "-c", ECHO, host], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def got(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def proxied() -> Iterator[tuple[Proxy, socket.socket]]:
    echo = Echo("127.0.0.1")
    with (
        Proxy("127.0.0.1", echo.port, random=Random(1)) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as one,
    ):
        assert said(one, b"a") == b"a"
        yield proxy, one
    echo.close()


def said(one: socket.socket, what: bytes) -> bytes:
    one.sendall(what)
    return one.recv(100)


def silent(one: socket.socket) -> bool:
    one.settimeout(QUIET)
    try:
        return one.recv(1) is None
    except TimeoutError:
        return True
    finally:
        one.settimeout(PATIENCE)


def test_a_namespace_drops_packets_in_silence() -> None:
    try:
        namespace = Namespace()
    except Unavailable as reason:
        pytest.skip(f"no network namespace here, the proxy stands in for it: {reason}")
    with namespace:
        echo = Echo(namespace.theirs, *namespace.within)
        address = (namespace.theirs, echo.port)
        with socket.create_connection(address, PATIENCE) as one:
            assert said(one, b"a") == b"a"
            namespace.cut()
            one.sendall(b"b")
            assert silent(one)
            assert echo.got() == "a"  # it did not arrive
            with pytest.raises(TimeoutError):  # nobody refuses, nobody says that there is no route
                socket.create_connection(address, 1.0)
            namespace.heal()
            assert one.recv(1) == b"b"  # TCP has sent it again
        echo.close()


def test_a_stalled_proxy_keeps_everything_for_later(proxied: tuple[Proxy, socket.socket]) -> None:
    proxy, one = proxied
    proxy.stall()
    one.sendall(b"b")
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as other:
        other.sendall(b"c")
        assert silent(one)
        assert silent(other)
        proxy.resume()
        assert (one.recv(1), other.recv(1)) == (b"b", b"c")


def test_a_forgotten_connection_stays_silent_and_new_ones_work(proxied: tuple[Proxy, socket.socket]) -> None:
    proxy, one = proxied
    proxy.forget()
    one.sendall(b"b")
    assert silent(one)
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as other:
        assert said(other, b"c") == b"c"


def test_a_proxy_delays(proxied: tuple[Proxy, socket.socket]) -> None:
    proxy, one = proxied
    proxy.delay = 0.1
    started = time.monotonic()
    assert said(one, b"b") == b"b"
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_ends_and_new_ones_work(proxied: tuple[Proxy, socket.socket], reset: bool) -> None:
    proxy, one = proxied
    proxy.cut(reset=reset)
    if reset:
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    else:
        assert one.recv(1) == b""
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as other:
        assert said(other, b"c") == b"c"


def test_a_stalled_connection_can_be_cut(proxied: tuple[Proxy, socket.socket]) -> None:
    proxy, one = proxied
    proxy.stall()
    one.sendall(b"b")
    proxy.cut()
    assert one.recv(1) == b""


def test_a_proxy_throttles(proxied: tuple[Proxy, socket.socket]) -> None:
    proxy, one = proxied
    proxy.rate = 200.0
    started = time.monotonic()
    assert said(one, bytes(10)) == bytes(10)  # one portion
    assert time.monotonic() - started >= 2 * 10 / 200  # there and back
    started = time.monotonic()
    one.sendall(bytes(40))
    got = b""
    while len(got) < 40:
        got += one.recv(100)
    assert got == bytes(40)
    assert time.monotonic() - started >= 40 / 200  # what has arrived may be on its way back while the rest is still to come


def test_a_proxy_corrupts_so_that_it_can_be_noticed(proxied: tuple[Proxy, socket.socket]) -> None:
    proxy, one = proxied
    proxy.corrupt = 1.0
    got = said(one, bytes(90))  # damaged on its way there and on its way back, with this seed in two places
    assert sorted(got) == [0x00] * 88 + [0x80] * 2
    proxy.heal()
    assert said(one, b"c").isascii()


def test_the_same_seed_corrupts_the_same() -> None:
    def damage(seed: int) -> list[bytes]:
        with Proxy("127.0.0.1", 9, random=Random(seed)) as proxy:
            proxy.corrupt = 0.5
            return [proxy._damaged(bytes(50)) for _ in range(20)]

    assert damage(1) == damage(1) != damage(2)
