"""Which address others reach us at."""

from __future__ import annotations

import ipaddress
import socket

from meshlib.errors import ConfigError
from meshlib.settings import Settings


def source_address(routes: tuple[tuple[str, int], ...]) -> str:
    """The source address of the route to the first of ``routes`` that has one; the loopback address when there are none.

    Nothing is sent: connecting a datagram socket only asks the kernel for the route. May block on a DNS look-up. Raises
    OSError when no route exists.
    """
    problem: OSError | None = None
    for host, port in routes:
        try:
            for family, kind, _, _, address in socket.getaddrinfo(host, port or 1, type=socket.SOCK_DGRAM):
                with socket.socket(family, kind) as probe:
                    probe.connect(address)
                    return str(probe.getsockname()[0]).partition("%")[0]
        except OSError as error:
            problem = error
    if problem is not None:
        raise problem
    return "127.0.0.1"


def advertised(settings: Settings, port: int | None, source: str) -> tuple[str, int]:
    """The host and port to register: ``MESH_ADVERTISE`` where it says so, else ``source`` and the port served on.
    Raises :class:`ConfigError` when there is no port."""
    host, given = "", 0
    if settings.advertise:
        host, _, text = settings.advertise.rpartition(":") if has_port(settings.advertise) else (settings.advertise, "", "0")
        given = int(text)
    serving = given or port or settings.port
    if not serving:
        raise ConfigError("MESH_PORT", "is not set, so there is no port to register", example="8080, or register(port=8080)")
    return host.strip("[]") or source, serving


def has_port(address: str) -> bool:
    """True for ``host:port`` and ``[v6]:port``, false for a bare IPv6 address."""
    return address.count(":") == 1 or "]:" in address


def suspicious(host: str, routes: tuple[tuple[str, int], ...]) -> str:
    """Why ``host`` is probably wrong to advertise, or nothing: a loopback address while the registry is elsewhere."""
    if not is_loopback(host) or not routes or all(is_loopback(server) for server, _ in routes):
        return ""
    return (f"{host} is a loopback address, and the registry is on another machine, whose users cannot call it: have "
            "MESH_ADVERTISE say another one, for example 10.0.0.5:8080")  # fmt: skip


def is_loopback(host: str) -> bool:
    """True for loopback addresses and ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
