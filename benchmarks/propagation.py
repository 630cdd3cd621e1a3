"""From a change in the registry to the pick that may choose the new instance, beside a watch by hand on the same server.

Real servers, their data in memory where the system has a place for that: a disk takes its milliseconds from both sides and
hides what differs. Writer, raw watch and mesh are a process each. Both watch the same change at once, so that what the server
takes for it, and whatever else troubles the machine just then, is the same for both; who is started first is changed at half
time. (In turns, each with changes of its own, the ratio of p50 is the same, and that of p99 says whom chance hit.)
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from benchmarks.measure import Row
from benchmarks.watching import CHANGING, b64
from meshlib import Instance, Settings
from meshlib.backends import open_backend
from meshlib.backends.codec import encode
from meshlib.backends.consul_wire import meta

CELLS = [(kind, count) for kind in ("consul", "etcd", "local") for count in (10, 100)] + [("consul", 1000), ("etcd", 1000)]
CHANGES = 250
BARS, LOCAL_MS = {0.5: 1.15, 0.99: 1.3}, {0.99: 100.0}
PAUSE = (0.06, 0.1)
"""Seconds between a change's arrival and the next change."""
MEMORY = Path("/dev/shm")  # noqa: S108 - a place in memory, for directories of our own

Write: TypeAlias = Callable[[Instance], object]


def rows() -> list[Row]:
    """For each registry and size, milliseconds at p50 and p99, and the CPU that a change costs who watches."""
    return [row for kind, count in CELLS for row in _cell(kind, count)]


def _cell(kind: str, count: int) -> list[Row]:
    case, watchers = f"{kind}, {count}", ("mesh",) if kind == "local" else ("raw", "mesh")
    times: dict[str, list[float]] = {who: [] for who in watchers}
    cpu = dict.fromkeys(watchers, 0.0)
    with _registry(kind) as (url, write):
        for number in range(count):
            write(_instance(number))
        for order in (watchers, watchers[::-1]):
            for watcher in _watch(order, url, write, CHANGES // 2):
                times[watcher.who] += watcher.times
                cpu[watcher.who] += (watcher.cpu[-1] - watcher.cpu[0]) / CHANGES
    made = []
    for share, bar in BARS.items():
        ms = {who: sorted(seconds)[int(share * len(seconds))] * 1e3 for who, seconds in times.items()}
        name = f"{case}: p{share * 100:.0f}"
        if kind == "local":
            made.append(Row(f"{name} mesh", ms["mesh"], "ms", None, LOCAL_MS.get(share)))
        else:
            made.append(Row(f"{name} raw watch", ms["raw"], "ms"))
            made.append(Row(f"{name} mesh", ms["mesh"], "ms", ms["mesh"] / ms["raw"], bar if count <= 100 else None))
    return made + [Row(f"{case}: CPU per change, {who}", used * 1e6, "us") for who, used in cpu.items()]


def _instance(number: int, generation: str = "0") -> Instance:
    return Instance(
        "orders", f"orders-{number}" if number else CHANGING, f"10.0.{number >> 8}.{number & 255}", 8080, version="1.4.2",
        zone=f"eu-west-1{'abc'[number % 3]}", labels={"team": "shop", "tier": "backend"}, generation=generation,
    )  # fmt: skip


class _Watcher:
    """A process that watches: when each change arrived there, in seconds after it was made, and its CPU seconds by then."""

    def __init__(self, who: str, url: str, state: str) -> None:
        self.who, self.times, self.cpu = who, list[float](), list[float]()
        command = [sys.executable, "-m", "benchmarks.watching", who, url, "orders"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "MESH_STATE_DIR": state},
                                        cwd=Path(__file__).parent.parent)  # fmt: skip

    def wait(self, generation: str, start: float) -> None:
        """Until it has ``generation``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told, seen, cpu = line.decode().split()
            if told == generation:
                self.times.append(float(seen) - start)
                self.cpu.append(float(cpu))
                return
        raise RuntimeError(f"the process that watches ({self.who}) ended")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def _watch(order: tuple[str, ...], url: str, write: Write, changes: int) -> list[_Watcher]:
    """Let the watchers start in this ``order`` and see so many ``changes``."""
    with tempfile.TemporaryDirectory() as state:
        watchers: list[_Watcher] = []
        try:
            write(_instance(0, first := f"{time.monotonic()}"))
            for who in order:
                watchers.append(_Watcher(who, url, state))
                watchers[-1].wait(first, 0.0)
            for number in range(changes):
                time.sleep(random.uniform(*PAUSE))
                changed = _instance(0, f"{first}-{number}")
                start = time.monotonic()
                write(changed)
                for watcher in watchers:
                    watcher.wait(changed.generation, start)
            for watcher in watchers:
                del watcher.times[0]
        finally:
            for watcher in watchers:
                watcher.close()
    return watchers


@contextmanager
def _registry(kind: str) -> Iterator[tuple[str, Write]]:
    """A new registry: its URL, and how to write an instance to it from another process than the one that watches."""
    before, tempfile.tempdir = tempfile.tempdir, str(MEMORY) if MEMORY.is_dir() else None
    try:
        with _local() if kind == "local" else _server(kind) as made:
            yield made
    finally:
        tempfile.tempdir = before


@contextmanager
def _server(kind: str) -> Iterator[tuple[str, Write]]:
    from tests.servers.consul import ConsulServer
    from tests.servers.etcd import EtcdServer

    server = ConsulServer() if kind == "consul" else EtcdServer()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def write(instance: Instance) -> None:
        method, path, body = _consul_request(instance) if kind == "consul" else _etcd_request(instance)
        connection.request(method, path, body)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{kind}: {answer.status} {said[:200]!r}")

    try:
        server.start()
        yield f"{kind}://127.0.0.1:{server.port}", write
    finally:
        connection.close()
        server.close()


def _consul_request(one: Instance) -> tuple[str, str, bytes]:
    check = {"TTL": "3600s", "Status": "passing"}
    body: dict[str, Any] = {
        "Name": one.service,
        "ID": one.id,
        "Address": one.host,
        "Port": one.port,
        "Meta": meta(one),
        "Check": check,
    }
    return "PUT", "/v1/agent/service/register", msgspec.json.encode(body)


def _etcd_request(one: Instance) -> tuple[str, str, bytes]:
    key = f"/meshlib/default/services/{one.service}/{one.id}"
    return "POST", "/v3/kv/put", msgspec.json.encode({"key": b64(key), "value": encode(one)})


@contextmanager
def _local() -> Iterator[tuple[str, Write]]:
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        url = f"local://{directory}/registry.db"
        registry = open_backend(Settings(registry=url)).registry
        try:
            yield url, lambda instance: runner.run(registry.register(instance, 3600.0))
        finally:
            runner.run(registry.close())
