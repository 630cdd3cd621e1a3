"""A network that can lose packets: no RST, no ICMP, as when a switch dies."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from contextlib import suppress
from typing import Self

_numbers = itertools.count()


class Unavailable(Exception):
    """This machine lets us make no namespace."""


class Namespace:
    """A namespace behind a router of its own, which is where packets get lost: neither end can know. Our address is
    :attr:`ours`, its own :attr:`theirs`. Raises :class:`Unavailable`."""

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise Unavailable("network namespaces need root and iproute2")
        number = next(_numbers)
        self.name, self.router = f"meshlib-{os.getpid()}-{number}", f"meshlib-{os.getpid()}-{number}-router"
        wire, net = f"mlv{os.getpid()}x{number}"[-15:], _claimed()
        self.net, self.ours, self.theirs = net, f"{net}.1", f"{net}.6"
        try:
            self._lay(wire, net)
        except Unavailable:
            self.close()
            raise

    def _lay(self, wire: str, net: str) -> None:
        for name in (self.name, self.router):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", wire, "type", "veth", "peer", "name", "left", "netns", self.router)
        _ip("-n", self.router, "link", "add", "right", "type", "veth", "peer", "name", "wire", "netns", self.name)
        for name, device, address in (
            ("", wire, self.ours), (self.router, "left", f"{net}.2"), (self.router, "right", f"{net}.5"),
            (self.name, "wire", self.theirs),
        ):  # fmt: skip
            where = ("-n", name) if name else ()
            _ip(*where, "addr", "add", f"{address}/30", "dev", device)
            _ip(*where, "link", "set", device, "up")
        _ip("route", "add", f"{self.theirs}/32", "via", f"{net}.2")
        _ip("-n", self.name, "route", "add", "default", "via", f"{net}.5")
        _run("ip", "netns", "exec", self.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    @property
    def within(self) -> tuple[str, ...]:
        """What to put before a command line for it to run inside; the process keeps its pid."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Drop every packet, in both directions."""
        for end in (self.ours, self.theirs):
            _ip("-n", self.router, "route", "add", "blackhole", f"{end}/32")

    def heal(self) -> None:
        """Deliver again."""
        for end in (self.ours, self.theirs):
            _ip("-n", self.router, "route", "del", "blackhole", f"{end}/32")

    def close(self) -> None:
        """Remove both; the wires and routes go with them."""
        for name in (self.router, self.name):
            with suppress(Unavailable):
                _ip("netns", "del", name)
        with suppress(Unavailable):
            _ip("route", "del", "blackhole", f"{self.net}.0/24")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _claimed() -> str:
    """The first three bytes of addresses that nobody else uses, other runs of the tests on this machine included: there can be
    only one such route. What is routed in detail does not go that way."""
    why = ""
    for number in range(250):
        net = f"10.203.{(os.getpid() + number) % 250}"
        try:
            _ip("route", "add", "blackhole", f"{net}.0/24")
        except Unavailable as reason:
            why = str(reason)
        else:
            return net
    raise Unavailable(why)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}")
