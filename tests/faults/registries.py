"""The registries under fault: each can be lost in three ways, given back, and made to forget what it lists.

What is asked of them here goes past meshlib, which is what is being tested.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from shutil import rmtree
from typing import Protocol

from tests.faults.network import Namespace, Unavailable
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer, b64
from tests.servers.proxy import Proxy

LOSSES = ("killed", "frozen", "cut off")
"""SIGKILL; SIGSTOP; packets dropped. What they mean for a registry that is a file, :class:`LocalFile` says."""
PREFIX = "/meshlib/default/services/orders/"


class Registry(Protocol):
    """What the scenarios do to a registry."""

    url: str
    serve_at: str
    """The address of ours that its side of the network can reach."""

    def start(self) -> None: ...
    def lose(self, how: str) -> None:
        """Make it unreachable in one of the :data:`LOSSES`."""

    def give_back(self, how: str) -> None:
        """The inverse: what it knew it still knows. Returns once it serves."""

    def forget(self) -> None:
        """Have it list nothing, from one moment to the next."""

    def wipe(self) -> None:
        """Have it die, unless it has, and come back with nothing."""

    def listed(self) -> int:
        """How many instances of "orders" it holds to be alive."""

    def close(self) -> None: ...


class OnWire:
    """A real server behind a wire that can be cut: in a network namespace, or behind a proxy where there can be none."""

    def __init__(self, server: ConsulServer | EtcdServer) -> None:
        self.server = server
        self.namespace: Namespace | None = None
        self.proxy: Proxy | None = None
        self.serve_at = "127.0.0.1"
        try:
            self.namespace = Namespace()
        except Unavailable as reason:
            print(f"a proxy stands in for the network: {reason}")
            self.proxy = Proxy("127.0.0.1", server.port)
        else:
            server.host, server.within, self.serve_at = self.namespace.theirs, self.namespace.within, self.namespace.ours
        port = self.proxy.port if self.proxy else server.port
        self.url = f"{server.name}://{server.host}:{port}"

    def start(self) -> None:
        self.server.start()

    def lose(self, how: str) -> None:
        match how:
            case "killed":
                self.server.kill()
            case "frozen":
                self.server.freeze()
            case _ if self.namespace:
                self.namespace.cut()
            case _:
                assert self.proxy is not None
                self.proxy.stall()  # not forget(): TCP sends again what the network dropped

    def give_back(self, how: str) -> None:
        match how:
            case "killed":
                self.server.start()
            case "frozen":
                self.server.thaw()
            case _ if self.namespace:
                self.namespace.heal()
            case _:
                assert self.proxy is not None
                self.proxy.resume()

    def wipe(self) -> None:
        self.server.kill()
        self.server.wipe()
        self.server.start()

    def close(self) -> None:
        self.server.close()
        wire = self.namespace or self.proxy
        if wire is not None:
            wire.close()


class Consul(OnWire):
    def __init__(self) -> None:
        self.agent = ConsulServer()
        super().__init__(self.agent)

    def forget(self) -> None:
        for name in self.agent.call("GET", "/v1/agent/services")[1]:
            self.agent.call("PUT", f"/v1/agent/service/deregister/{name}")

    def listed(self) -> int:
        status, found = self.agent.call("GET", "/v1/health/service/orders?passing=1")
        return len(found) if status == 200 else 0


class Etcd(OnWire):
    def __init__(self) -> None:
        self.member = EtcdServer()
        super().__init__(self.member)

    def _prefix(self) -> dict[str, str]:
        return {"key": b64(PREFIX), "range_end": b64(PREFIX[:-1] + "0")}

    def forget(self) -> None:
        self.member.call("/v3/kv/deleterange", **self._prefix())

    def listed(self) -> int:
        try:
            return int(self.member.call("/v3/kv/range", **self._prefix()).get("count", 0))
        except OSError:
            return 0


HOLD = """
import sqlite3, sys
writer = sqlite3.connect(sys.argv[1], isolation_level=None)
writer.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


class LocalFile:
    """The embedded registry. *Killed*: its file is removed. *Frozen*: another process was stopped in the middle of a write,
    and holds the lock. *Cut off*: something else stands where its directory was."""

    serve_at = "127.0.0.1"

    def __init__(self) -> None:
        self.room = Path(tempfile.mkdtemp(prefix="meshlib-local-"))
        self.file = self.room / "registry" / "registry.db"
        self.url = f"local://{self.file}"
        self._holder: subprocess.Popen[str] | None = None

    def start(self) -> None:
        pass

    def lose(self, how: str) -> None:
        match how:
            case "killed":
                self.file.unlink()
            case "frozen":
                self._holder = subprocess.Popen([sys.executable, "-c", HOLD, self.file], text=True,
                                                stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
                assert self._holder.stdout is not None
                assert self._holder.stdout.readline() == "held\n"
            case _:
                self.file.parent.rename(self.room / "taken-away")
                self.file.parent.write_text("here was a registry\n")

    def give_back(self, how: str) -> None:
        match how:
            case "killed":
                pass  # it is made anew by whoever needs it
            case "frozen":
                assert self._holder is not None
                self._holder.communicate("")
                self._holder = None
            case _:
                self.file.parent.unlink()
                (self.room / "taken-away").rename(self.file.parent)

    def forget(self) -> None:
        with closing(sqlite3.connect(self.file, timeout=5)) as writer, writer:
            writer.execute("DELETE FROM instances")
            writer.execute("UPDATE meta SET revision = revision + 1")

    def wipe(self) -> None:
        self.file.unlink()

    def listed(self) -> int:
        alive, give_up = "SELECT count(*) FROM instances WHERE service = 'orders' AND expires > ?", time.monotonic() + 5.0
        while self.file.is_file() and time.monotonic() < give_up:
            # Just made, or locked by whoever has to repair it after a death: that is no list of nobody.
            with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=5)) as reader:
                return int(reader.execute(alive, (time.monotonic(),)).fetchone()[0])
            time.sleep(0.01)
        return 0

    def close(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
        rmtree(self.room, ignore_errors=True)


REGISTRIES: dict[str, Callable[[], Registry]] = {"consul": Consul, "etcd": Etcd, "local": LocalFile}
