"""An etcd on free ports, plain or with TLS, with users or without."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import trustme

from meshlib.security.secret import Secret
from meshlib.settings import Settings
from tests.servers.base import Server, free_port, need

ROOT, LIMITED, PASSWORD = "root", "meshlib", "open sesame"


class EtcdServer(Server):
    """``tls``: ``""`` (plain), ``"server"`` or ``"mutual"``. ``token_ttl`` is the life of a login in whole seconds.
    Its data survive :meth:`restart` until :meth:`wipe`; the certificates survive that too."""

    name = "etcd"

    def __init__(self, *, tls: str = "", token_ttl: int = 300) -> None:
        self.program = need("etcd")
        super().__init__()
        self.tls, self.token_ttl = tls, token_ttl
        self.port, self.peer_port = free_port(), free_port()
        self.members: list[EtcdServer] = [self]
        """All of its cluster (see :class:`tests.servers.cluster.EtcdCluster`)."""
        self.token = ""
        self.ca = trustme.CA()
        self._issue()

    def _issue(self) -> None:
        # The gateway calls its own server with the server's certificate, so under "mutual" that one must be good for
        # clients too; trustme's are good for both.
        self.files = Path(f"{self.data}-tls")
        self.files.mkdir()
        self.ca.cert_pem.write_to_path(str(self.files / "ca.pem"))
        trustme.CA().cert_pem.write_to_path(str(self.files / "other-ca.pem"))
        for name in ("server", "client"):
            certificate = self.ca.issue_cert("127.0.0.1", "localhost")
            certificate.private_key_pem.write_to_path(str(self.files / f"{name}.key"))
            certificate.cert_chain_pems[0].write_to_path(str(self.files / f"{name}.pem"))

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def peer(self) -> str:
        """Its part of ``--initial-cluster``: its name, and where other members reach it."""
        return f"member-{self.port}=http://127.0.0.1:{self.peer_port}"

    def command(self) -> list[str]:
        name, _, peer = self.peer.partition("=")
        everybody = ",".join(member.peer for member in self.members)
        line = [
            self.program, "--name", name, "--data-dir", str(self.data / "etcd"),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", everybody,
            "--auth-token", "simple", "--auth-token-ttl", str(self.token_ttl), "--bcrypt-cost", "4",
        ]  # fmt: skip
        if self.tls:
            line += ["--cert-file", str(self.files / "server.pem"), "--key-file", str(self.files / "server.key")]
        if self.tls == "mutual":
            line += ["--client-cert-auth", "--trusted-ca-file", str(self.files / "ca.pem")]
        return line

    def ready(self) -> bool:
        try:
            return bool(self.call("/v3/maintenance/status").get("leader"))
        except OSError:
            return False

    def restart(self) -> None:
        """SIGKILL and start again with the same data."""
        self.kill()
        self.start()

    def close(self) -> None:
        super().close()
        for file in self.files.iterdir():
            file.unlink()
        self.files.rmdir()

    def settings(self, *, options: str = "", **more: Any) -> Settings:
        """Settings of a client: with the certificates it needs, without a user."""
        files: dict[str, Any] = {"registry_ca": str(self.files / "ca.pem")} if self.tls else {}
        if self.tls == "mutual":
            files |= {"registry_cert": str(self.files / "client.pem"), "registry_key": str(self.files / "client.key")}
        return Settings(**{"registry": f"etcd://127.0.0.1:{self.port}{options}", **files, **more})

    def limited(self, **more: Any) -> Settings:
        """Settings of the limited user that :meth:`enable_auth` makes."""
        return self.settings(registry_user=LIMITED, registry_password=Secret(PASSWORD), **more)

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """One request to the gateway by other means than the code under test, as root once there are users."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        if self.token:
            request.add_header("Authorization", self.token)
        with urllib.request.urlopen(request, timeout=5, context=self._context()) as response:
            answer: dict[str, Any] = json.loads(response.read().splitlines()[0])
            return answer

    def _context(self) -> ssl.SSLContext | None:
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=str(self.files / "ca.pem"))
        context.load_cert_chain(self.files / "client.pem", self.files / "client.key")
        return context

    def enable_auth(self, prefix: str = "/meshlib/") -> None:
        """Turn users on: root, and one that may read and write below ``prefix`` only."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        for user, role in ((ROOT, "root"), (LIMITED, "limited")):
            self.call("/v3/auth/user/add", name=user, password=PASSWORD)
            self.call("/v3/auth/role/add", name=role)
            self.call("/v3/auth/user/grant", user=user, role=role)
        allowed = {"permType": "READWRITE", "key": b64(prefix), "range_end": b64(end)}
        self.call("/v3/auth/role/grant", name="limited", perm=allowed)
        self.call("/v3/auth/enable")
        self.login()

    def login(self) -> None:
        """Get root a new token."""
        self.token = ""
        self.token = self.call("/v3/auth/authenticate", name=ROOT, password=PASSWORD)["token"]

    def put(self, key: str, value: str | bytes) -> int:
        """Write a key and return the revision."""
        return int(self.call("/v3/kv/put", key=b64(key), value=b64(value))["header"]["revision"])

    def delete(self, key: str) -> None:
        """Remove a key."""
        self.call("/v3/kv/deleterange", key=b64(key))

    def compact(self) -> None:
        """Forget all but the present."""
        revision = self.call("/v3/kv/range", key=b64("x"))["header"]["revision"]
        self.call("/v3/kv/compaction", revision=revision)


def b64(text: str | bytes) -> str:
    """As the gateway wants its bytes."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
