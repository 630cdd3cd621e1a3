"""Which address others reach us at."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from meshlib.discovery.address import advertised, is_loopback, source_address, suspicious
from meshlib.errors import ConfigError
from meshlib.settings import Settings

ROUTED = "10.9.9.9"


@pytest.mark.parametrize(
    ("advertise", "port", "set_port", "expected"),
    [
        ("", 8080, 0, (ROUTED, 8080)),
        ("", None, 9090, (ROUTED, 9090)),
        ("", 8080, 9090, (ROUTED, 8080)),
        ("10.0.0.5", 8080, 0, ("10.0.0.5", 8080)),
        ("10.0.0.5:80", 8080, 0, ("10.0.0.5", 80)),
        ("10.0.0.5:80", None, 0, ("10.0.0.5", 80)),
        ("orders.internal", None, 9090, ("orders.internal", 9090)),
        ("orders.internal:443", 8080, 9090, ("orders.internal", 443)),
        ("[2001:db8::1]:80", None, 0, ("2001:db8::1", 80)),
        ("[2001:db8::1]", 8080, 0, ("2001:db8::1", 8080)),
        ("2001:db8::1", 8080, 0, ("2001:db8::1", 8080)),
        ("2001:DB8:0::1", 8080, 0, ("2001:db8::1", 8080)),
    ],
)
def test_advertised(advertise: str, port: int | None, set_port: int, expected: tuple[str, int]) -> None:
    settings = Settings(advertise=advertise, port=set_port)
    assert advertised(settings, port, ROUTED) == expected
    assert advertised(settings.changed(weight=2), port, ROUTED) == expected, "it survives being checked again"


@pytest.mark.parametrize("advertise", ["", "10.0.0.5", "2001:db8::1"])
def test_no_port(advertise: str) -> None:
    with pytest.raises(ConfigError, match=r"MESH_PORT .*register\(port=8080\)"):
        advertised(Settings(advertise=advertise), None, ROUTED)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("0.0.0.0", "not an address that others can call"),
        ("[::]:80", "not an address that others can call"),
        ("224.0.0.1", "not an address that others can call"),
        ("10.0.0.5:0", "port '0' is not in 1..65535"),
        ("10.0.0.5:65536", "port '65536' is not in 1..65535"),
        ("10.0.0.5:http", "port 'http' is not in 1..65535"),
        (":8080", "a host is missing"),
        ("2130706433", "resolvers would read as a number"),
        ("a b", "neither an IP address nor a host name"),
        ("http://10.0.0.5", "is not in 1..65535"),
        ("[10.0.0.5", "neither an IP address nor a host name"),
        ("user@10.0.0.5", "neither an IP address nor a host name"),
    ],
)
def test_an_unusable_address_is_named_with_its_source_and_an_example(value: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(environ={"MESH_ADVERTISE": value})
    text = str(caught.value)
    assert text.startswith("MESH_ADVERTISE (from environment): ")
    assert why in text
    assert text.endswith("for example 10.0.0.5:8080")


@pytest.mark.parametrize(
    ("host", "routes", "warned"),
    [
        ("127.0.0.1", (("10.0.0.1", 8500),), True),
        ("127.8.8.8", (("10.0.0.1", 8500), ("127.0.0.1", 8500)), True),
        ("::1", (("consul.internal", 8500),), True),
        ("localhost", (("10.0.0.1", 8500),), True),
        ("127.0.0.1", (("127.0.0.1", 8500),), False),
        ("127.0.0.1", (("localhost", 8500), ("::1", 1)), False),
        ("127.0.0.1", (), False),
        ("10.0.0.5", (("10.0.0.1", 8500),), False),
        ("orders.internal", (("10.0.0.1", 8500),), False),
    ],
)
def test_suspicious(host: str, routes: tuple[tuple[str, int], ...], warned: bool) -> None:
    assert ("MESH_ADVERTISE" in suspicious(host, routes)) is warned


def test_is_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "example.org")] == [True] * 3 + [
        False
    ] * 2


class Routes:
    """A kernel that knows some routes. Nothing is sent, nothing is opened."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        if host == "unknown.internal":
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (host, port))]

    def socket(self, *_: Any) -> Routes:
        return self

    def connect(self, address: tuple[str, int]) -> None:
        if address[0] not in self.known:
            raise OSError(101, "Network is unreachable")
        self.source = self.known[address[0]]

    def getsockname(self) -> tuple[str, int]:
        return (self.source, 1)

    def __enter__(self) -> Routes:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([], "127.0.0.1"),
        (["10.0.0.1"], "10.0.0.5"),
        (["172.16.0.1", "10.0.0.1"], "10.0.0.5"),
        (["unknown.internal", "10.0.0.1"], "10.0.0.5"),
        (["fe80::9"], "fe80::1"),
    ],
)
def test_source_address(hosts: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = Routes({"10.0.0.1": "10.0.0.5", "fe80::9": "fe80::1%eth0"})
    monkeypatch.setattr(socket, "getaddrinfo", routes.getaddrinfo)
    monkeypatch.setattr(socket, "socket", routes.socket)
    assert source_address(tuple((host, 8500) for host in hosts)) == expected


@pytest.mark.parametrize("hosts", [["172.16.0.1"], ["unknown.internal"], ["172.16.0.1", "unknown.internal"]])
def test_no_route(hosts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    routes = Routes({})
    monkeypatch.setattr(socket, "getaddrinfo", routes.getaddrinfo)
    monkeypatch.setattr(socket, "socket", routes.socket)
    with pytest.raises(OSError):
        source_address(tuple((host, 8500) for host in hosts))
