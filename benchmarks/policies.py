"""How long a change of a policy document takes until it is in force in every process: four of them, real stores.

A process says the (whole machine's) monotonic time when a document is applied: its layers are swapped by then. What is
measured is the slowest of the four, from before the document is written. The writer is another process, the pauses between
changes are random. Where the machine has a file system in memory, the stores keep their files there.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from meshlib import Settings
from meshlib.backends import open_backend
from meshlib.governance.document import encoded
from meshlib.governance.layout import key_of
from meshlib.model import ServiceUrl

PROCESSES = 4
CHANGES = 150
BARS = {"local": 200.0, "consul": 1000.0, "etcd": 1000.0}
"""Milliseconds at p99."""
PAUSE = (0.05, 0.15)
MEMORY = Path("/dev/shm")  # noqa: S108 - a place in memory, for directories of our own


def rows() -> list[Row]:
    """For each store, milliseconds at p50 and p99."""
    made = []
    for kind, bar in BARS.items():
        times = sorted(_times(kind))
        made.append(Row(f"{kind}, {PROCESSES} processes: p50", times[len(times) // 2] * 1e3, "ms"))
        made.append(Row(f"{kind}, {PROCESSES} processes: p99", times[int(len(times) * 0.99)] * 1e3, "ms", None, bar))
    return made


def _times(kind: str) -> list[float]:
    from tests.servers.follower import Process, list_one

    with ExitStack() as ending:
        settings = ending.enter_context(_store(kind))
        state = Path(ending.enter_context(tempfile.TemporaryDirectory(dir=_memory())))
        list_one(settings)
        processes = [ending.enter_context(closing(Process(str(settings.registry), state))) for _ in range(PROCESSES)]
        for process in processes:
            process.until("ready")
        return asyncio.run(_change(settings, processes))


async def _change(settings: Settings, processes: list[Any]) -> list[float]:
    backend, found = open_backend(settings), []
    assert backend.kv is not None
    key = key_of(ServiceUrl("orders"))
    for version in range(1, CHANGES + 2):
        rules = {"rate_limit": {"limits": [f"{1000 + version}/s"]}, "retry": {"attempts": version % 5 + 1}}
        document = encoded({"version": version, "consumer": {"policies": rules}})
        await asyncio.sleep(random.uniform(*PAUSE))
        start = time.monotonic()
        await backend.kv.put(key, document)
        lines = [await asyncio.to_thread(process.until, f"applied {version} kv") for process in processes]
        found.append(max(float(line.split()[3]) for line in lines) - start)
    await backend.close()
    return found[1:]  # the first one opens connections


def _memory() -> str | None:
    return str(MEMORY) if MEMORY.is_dir() else None


@contextmanager
def _store(kind: str) -> Iterator[Settings]:
    from tests.servers.consul import ConsulServer
    from tests.servers.etcd import EtcdServer

    if kind == "local":
        with tempfile.TemporaryDirectory(dir=_memory()) as directory:
            yield Settings(registry=f"local://{directory}/registry.db")
        return
    before, tempfile.tempdir = tempfile.tempdir, _memory()
    try:
        server = ConsulServer() if kind == "consul" else EtcdServer()
    finally:
        tempfile.tempdir = before
    with closing(server):
        server.start()
        yield Settings(registry=f"{kind}://127.0.0.1:{server.port}")
