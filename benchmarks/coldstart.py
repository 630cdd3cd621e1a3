"""A new process while its registry is dead: from ``Mesh.from_env()`` to the first answer, from the disk snapshot.

Whole interpreters, the cases in turn in every round. The imports of meshlib and httpx2 are aside; what a backend imports when
it is first used is not.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.measure import Row
from meshlib import Instance, ServiceUrl, Snapshot
from meshlib.discovery.store import SnapshotStore

ROUNDS = 9
FIRST_ANSWER_MS, FROM_ENV_MS = 300.0, 100.0
"""Bars. A registry's own time-out is 3000 ms."""
CHILD = """
import json, time
from benchmarks.call import Orders
from meshlib.mesh import Mesh
start = time.perf_counter()
mesh = Mesh.from_env()
made = time.perf_counter()
assert mesh.client(Orders).fetch(7) == {"id": 7}
answered = time.perf_counter()
assert mesh.snapshot("orders").source == "disk"
print(json.dumps([(made - start) * 1e3, (answered - start) * 1e3]))
"""


class Provider(BaseHTTPRequestHandler):
    """Answers with an order."""

    def do_GET(self) -> None:
        """One answer."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "8")
        self.end_headers()
        self.wfile.write(b'{"id":7}')

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


@contextmanager
def provider() -> Iterator[int]:
    """The port of one that serves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def dead(room: Path) -> Iterator[dict[str, str]]:
    """The URL of each kind of registry that is dead, by its case."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refuses = closed.getsockname()[1]
    (room / "registry").write_text("here was a registry\n")
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        never = silent.getsockname()[1]
        yield {
            "local, its directory taken away": f"local://{room}/registry/registry.db",
            **{f"{kind}, refuses connections": f"{kind}://127.0.0.1:{refuses}" for kind in ("consul", "etcd")},
            **{f"{kind}, connects and is silent": f"{kind}://127.0.0.1:{never}" for kind in ("consul", "etcd")},
        }


def rows() -> list[Row]:
    """``Mesh.from_env()`` and the first answer, for each kind of registry and of death."""
    with tempfile.TemporaryDirectory() as name, provider() as port, dead(Path(name)) as registries:
        state = Path(name) / "state"
        for url in registries.values():
            _remember(state, url, port)
        measured: dict[str, list[tuple[float, float]]] = {case: [] for case in registries}
        for _ in range(ROUNDS):
            for case, url in registries.items():
                measured[case].append(_start(url, state))
    made = [Row(f"Mesh.from_env(): {case}", statistics.median(one for one, _ in times), "ms", None, FROM_ENV_MS)
            for case, times in measured.items()]  # fmt: skip
    return made + [Row(f"first answer: {case}", statistics.median(one for _, one in times), "ms", None, FIRST_ANSWER_MS)
                   for case, times in measured.items()]  # fmt: skip


def _remember(state: Path, url: str, port: int) -> None:
    snapshot = Snapshot(ServiceUrl("orders"), (Instance("orders", "orders-1", "127.0.0.1", port),), confirmed=time.time())
    SnapshotStore(state, registry=url, max_age=3600).save(snapshot)


def _start(url: str, state: Path) -> tuple[float, float]:
    env = {**os.environ, "MESH_REGISTRY": url, "MESH_STATE_DIR": str(state)}
    done = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True, env=env,
                          cwd=Path(__file__).parent.parent)  # fmt: skip
    made, answered = json.loads(done.stdout)
    return made, answered
