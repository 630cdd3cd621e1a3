"""The processes around a cluster of three, and what the cluster itself says of them.

Three provide "orders" and one calls it. The others are controls, which know one node of the cluster only: a provider of
"lonely", which nobody calls, lacks the failover between hosts (see :meth:`Troupe.lonely`); three consumers, one for each
node, lack that and the list kept in memory: they ask their node before each call.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.stage import Process, Stage, everybody_served, newly_listed
from tests.servers.base import eventually
from tests.servers.cluster import ConsulCluster, EtcdCluster
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer, b64

Node = ConsulServer | EtcdServer
AnyCluster = ConsulCluster | EtcdCluster

PROVIDERS = 3
RATE = 200
"""Calls per second."""
PACE = 0.25
"""Share of them that must have been made: a busy machine makes fewer, and none of them may fail either."""
TTL = 6.0
HEARTBEAT = TTL / 3
ALLOWANCE = 1.0
"""Seconds beyond a heartbeat for a machine that does other things, too: a request or two, and our looking at it."""


def registered(cluster: AnyCluster, service: str = "orders") -> set[str] | None:
    """The ids of ``service`` that the cluster's leader holds to be alive; None when there is no leader."""
    for node in cluster.alive:
        found = _passing(node, service) if isinstance(node, ConsulServer) else _stored(node, service)
        if found is not None:
            return found
    return None


def _passing(node: ConsulServer, service: str) -> set[str] | None:
    status, found = node.call("GET", f"/v1/health/service/{service}?passing=1&consistent")
    return {entry["Service"]["ID"] for entry in found or ()} if status == 200 else None


def _stored(node: EtcdServer, service: str) -> set[str] | None:
    prefix = f"/meshlib/default/services/{service}/"
    try:
        answer = node.call("/v3/kv/range", key=b64(prefix), range_end=b64(prefix[:-1] + "0"), keys_only=True)
    except OSError:
        return None
    return {unb64(pair["key"]).removeprefix(prefix) for pair in answer.get("kvs", ())}


def unb64(text: str) -> str:
    """The inverse of :func:`~tests.servers.etcd.b64`."""
    return base64.b64decode(text).decode()


def ident(port: str) -> str:
    """The id of a provider of "orders"."""
    return f"orders-127.0.0.1-{port}"


def clients(node: Node, process: Process | None = None) -> int:
    """How many connections to ``node`` there are, of ``process`` or of anybody."""
    port, established = f":{node.port:04X}", "01"
    mine = sockets(process) if process else None
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    theirs = [line[9] for line in lines if line[2].endswith(port) and line[3] == established]
    return sum(mine is None or inode in mine for inode in theirs)


def sockets(process: Process) -> set[str]:
    """The inodes of its sockets."""
    found = set()
    for handle in Path(f"/proc/{process.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(handle).removeprefix("socket:[").rstrip("]"))
    return found


class Lookout:
    """Looks, in a thread, at whether ``cluster`` lists ``ids`` and nobody else, until :meth:`close`."""

    def __init__(self, cluster: AnyCluster, ids: set[str]) -> None:
        self.cluster, self.ids = cluster, ids
        self.incomplete: list[float] = []
        """The times (monotonic) at which it did not."""
        self.mute: list[float] = []
        """Those until which there was no leader to say."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            began, found = time.monotonic(), registered(self.cluster)
            if found is None:
                self.mute.append(time.monotonic())
            elif found != self.ids:
                self.incomplete.append(began)

    def heard_since(self, when: float) -> float:
        """``when``, or the last time after it until which there was no leader."""
        return max([when, *self.mute[-1:]])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class Troupe:
    """Begins with everybody registered and calling. All but the controls know all nodes of ``cluster``, the leader first, so
    that it is the one they use."""

    def __init__(self, cluster: AnyCluster) -> None:
        self.cluster = cluster
        leader = cluster.await_leader()
        others = [node for node in cluster.nodes if node is not leader]
        self.stage = Stage(cluster.url(leader, *others), MESH_TTL=str(TTL))
        self.providers = dict(self.stage.provider() for _ in range(PROVIDERS))
        self.ports = list(self.providers)
        self.ids = {ident(port) for port in self.ports}
        self.await_registered(within=60)
        self.consumer = self.stage.consumer("--kind", "async", "--tasks", "8", "--rate", str(RATE))
        self.controls = {node: self._control(node) for node in cluster.nodes}
        everybody_served([self.consumer, *self.controls.values()], self.ports)

    def _control(self, node: Node) -> Process:
        return self.stage.consumer("--kind", "cacheless", "--rate", "20", MESH_REGISTRY=self.cluster.url(node))

    @contextmanager
    def lonely(self, node: Node) -> Iterator[None]:
        """A provider of "lonely" is registered, which knows ``node`` only."""
        _, provider = self.stage.provider(MESH_SERVICE="lonely", MESH_REGISTRY=self.cluster.url(node))
        eventually(lambda: bool(registered(self.cluster, "lonely")), within=60, what='"lonely" is registered')
        yield
        provider.close()

    def await_registered(self, *, within: float) -> float:
        """Wait until the cluster lists all providers and nobody else. The seconds it took."""
        return eventually(lambda: registered(self.cluster) == self.ids, within=within, what=self.story)

    def await_live(self, consumer: Process | None = None, *, within: float) -> float:
        """Wait until the view of ``consumer`` (default: the one) is live, which what is new must show. The seconds that took."""
        who = consumer or self.consumer

        def sees(more: int) -> bool:
            return who.ask().whole_since(len(self.ids) + more) is not None

        with newly_listed(self.cluster.url(*self.cluster.alive)) as since:
            eventually(lambda: sees(1), within=within, what=self.story)
            took = max(0.0, (who.ask().whole_since(len(self.ids) + 1) or time.monotonic()) - since)
        eventually(lambda: sees(0), within=within, what=self.story)
        return took

    @contextmanager
    def guests(self, registry: str) -> Iterator[Process]:
        """One more provider, and a consumer, which reach the cluster by the URL ``registry``. Yields the consumer."""
        port, provider = self.stage.provider(MESH_REGISTRY=registry)
        consumer = self.stage.consumer("--rate", "50", MESH_REGISTRY=registry)
        self.ids.add(ident(port))
        everybody_served([self.consumer, consumer], [*self.ports, port])
        try:
            yield consumer
        finally:
            self.ids.remove(ident(port))
            consumer.close()
            provider.close()

    @contextmanager
    def killed(self, number: int) -> Iterator[None]:
        """The provider of that number has died; in the end it is started again, at its port."""
        port = self.ports[number]
        self.providers[port].close()
        try:
            yield
        finally:
            _, self.providers[port] = self.stage.provider(port=port)

    def story(self) -> str:
        """Everything there is to say of a failure."""
        return (f"everybody is listed and seen: {sorted(self.ids)}; listed {sorted(registered(self.cluster) or ())}; the view "
                f"(time, live, listed, suspects) was {self.consumer.ask().timeline[-8:]}\n"
                f"{self.stage.logs()}\n{self.cluster.logs()}")  # fmt: skip

    def close(self) -> None:
        """End the processes; the cluster stays."""
        self.stage.close()
