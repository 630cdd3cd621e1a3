"""A real Consul agent: one server, and more agents joined to it on request."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any

from tests.servers.base import Server, free_port, need


class ConsulServer(Server):
    """A Consul server of its own cluster, or with ``join`` a client agent of another's.

    ``token`` turns ACLs on, deny by default, with that token (a UUID) for everything. ``tls`` maps ``ca``, ``cert`` and
    ``key`` to PEM texts and makes it serve HTTPS only. With ``expect`` 2 and ``join`` it is one of two servers; how three
    servers become a cluster, ``peers`` of each other, see :class:`tests.servers.cluster.ConsulCluster`.
    """

    name = "consul"

    def __init__(
        self, *, token: str = "", tls: Mapping[str, str] | None = None, join: ConsulServer | None = None, expect: int = 1,
        dc: str = "dc1",
    ) -> None:  # fmt: skip
        self.program = need("consul")
        super().__init__()
        self.token: str = token or (join.token if join else "")
        self.tls, self.join, self.dc = tls, join, dc
        self.expect = expect
        self.peers: list[ConsulServer] = [join] if join else []
        """Whom it looks for, now and after each restart."""
        self.port, self.serf, self.rpc = free_port(), free_port(), free_port()

    @property
    def url(self) -> str:
        return f"consul://{self.host}:{self.port}"

    def command(self) -> list[str]:
        # Written at every start: wipe() takes it away with the state.
        for name, text in (self.tls or {}).items():
            (self.data / f"{name}.pem").write_text(text)
        (self.data / "config.json").write_text(json.dumps(self._config()))
        return [self.program, "agent", f"-config-file={self.data / 'config.json'}"]

    def _config(self) -> dict[str, object]:
        secure = "https" if self.tls else "http"
        ports = {"http": -1, "dns": -1, "grpc": -1, "serf_wan": -1, "serf_lan": self.serf, "server": self.rpc}
        config: dict[str, object] = {
            "node_name": f"node-{self.port}",
            "datacenter": self.dc,
            "data_dir": str(self.data / "state"),
            "bind_addr": "127.0.0.1",
            "client_addr": self.host,
            "ports": {**ports, secure: self.port},
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
            "log_level": "warn",
        }
        if self.join is None or self.expect > 1:
            config |= {"server": True, "bootstrap_expect": self.expect}
        if self.peers:
            config["retry_join"] = [f"127.0.0.1:{peer.serf}" for peer in self.peers]
            config["retry_interval"] = "1s"
        if self.token:
            tokens = {"master": self.token, "agent": self.token}  # releases from 1.11 on call it initial_management
            config["acl"] = {"enabled": True, "default_policy": "deny", "tokens": tokens}
        if self.tls:
            config |= {f"{name}_file": str(self.data / f"{name}.pem") for name in self.tls}
        return config

    def ready(self) -> bool:
        """It knows the leader, and the catalogue knows it: before that sessions are refused."""
        status, leader = self.call("GET", "/v1/status/leader")
        if status != 200 or not leader:
            return False
        status, checks = self.call("GET", f"/v1/health/node/node-{self.port}")
        return status == 200 and any(check["CheckID"] == "serfHealth" for check in checks or ())

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Ask it directly: its status (0 when it does not answer) and what it said."""
        connection = (
            http.client.HTTPSConnection(self.host, self.port, timeout=5, context=ssl._create_unverified_context())
            if self.tls
            else http.client.HTTPConnection(self.host, self.port, timeout=5)
        )
        try:
            text = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, text, {"X-Consul-Token": self.token} if self.token else {})
            response = connection.getresponse()
            said = response.read()
            return response.status, json.loads(said) if said and response.status == 200 else said.decode()
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()
