"""Three servers that are one registry: any one of them may be lost, with two lost there is no quorum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from tests.servers.base import eventually
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer

Node = TypeVar("Node", ConsulServer, EtcdServer)

SIZE = 3
ELECTION = 60.0
"""Seconds until there must be a leader. It takes 1 to 3, and this machine may be busy."""


class Cluster(Generic[Node]):
    """Its ``nodes`` are killed, stopped and frozen as any server; a killed one is started again with its data."""

    name = "cluster"

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def start(self) -> None:
        """Start all and wait until they are one cluster with a leader."""
        self.launch(self.nodes)

    def launch(self, nodes: Iterable[Node]) -> None:
        """Start ``nodes``, together, since one of them may not become ready without another; then wait for a leader."""
        started = list(nodes)
        for node in started:
            node.launch()
        for node in started:
            node.await_ready()
        self.await_leader()

    def restart(self, *nodes: Node) -> None:
        """Start nodes that ended, with their data, and wait until they serve."""
        self.launch(nodes)

    def kill(self, *nodes: Node) -> None:
        """SIGKILL."""
        for node in nodes:
            node.kill()

    @property
    def alive(self) -> list[Node]:
        """Those whose process runs."""
        return [node for node in self.nodes if node.alive]

    def leader(self) -> Node | None:
        """The leader, None while there is none that its followers and a read agree on."""
        found = [node for node in self.alive if self.leads(node)]
        return found[0] if len(found) == 1 and all(map(self.led, self.alive)) else None

    def leads(self, node: Node) -> bool:
        """True when ``node`` holds itself to be the leader."""
        raise NotImplementedError

    def led(self, node: Node) -> bool:
        """True when ``node`` answers what only a leader with a quorum can know."""
        raise NotImplementedError

    def await_leader(self) -> Node:
        """Wait for :meth:`leader`."""
        eventually(lambda: self.leader() is not None, within=ELECTION, what=lambda: f"{self.name} has a leader{self.logs()}")
        leader = self.leader()
        return leader if leader is not None else self.await_leader()

    def followers(self) -> list[Node]:
        """All but the leader."""
        leader = self.await_leader()
        return [node for node in self.nodes if node is not leader]

    def url(self, *nodes: Node) -> str:
        """For MESH_REGISTRY: ``nodes`` in that order, or all."""
        return f"{self.name}://" + ",".join(f"{node.host}:{node.port}" for node in nodes or self.nodes)

    def logs(self) -> str:
        """The last that each node logged, for the message of a failure."""
        return "".join(
            f"\n--- {node.name} {node.port}{'' if node.alive else ' (ended)'}\n{node.log_tail()}" for node in self.nodes
        )

    def close(self) -> None:
        """Stop all and remove their data."""
        for node in self.nodes:
            node.close()


class ConsulCluster(Cluster[ConsulServer]):
    """Three Consul servers, each of which is the agent of those who register with it."""

    name = "consul"

    def __init__(self) -> None:
        super().__init__([ConsulServer(expect=SIZE) for _ in range(SIZE)])
        for node in self.nodes:
            node.peers = [peer for peer in self.nodes if peer is not node]

    def leads(self, node: ConsulServer) -> bool:
        status, address = node.call("GET", "/v1/status/leader")
        return status == 200 and address == f"127.0.0.1:{node.rpc}"

    def led(self, node: ConsulServer) -> bool:
        return (
            node.call("GET", "/v1/catalog/datacenters")[0] == 200 and node.call("GET", "/v1/catalog/nodes?consistent")[0] == 200
        )


class EtcdCluster(Cluster[EtcdServer]):
    """Three members of one etcd."""

    name = "etcd"

    def __init__(self) -> None:
        super().__init__([EtcdServer() for _ in range(SIZE)])
        for node in self.nodes:
            node.members = self.nodes

    def leads(self, node: EtcdServer) -> bool:
        try:
            status = node.call("/v3/maintenance/status")
        except OSError:
            return False
        return bool(status.get("leader")) and status["leader"] == status["header"]["member_id"]

    def led(self, node: EtcdServer) -> bool:
        try:
            return bool(node.call("/v3/kv/range", key="eA=="))
        except OSError:
            return False
