"""The processes of a scenario: providers and consumers of "orders" around one registry."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from meshlib import Instance, RegistryUrl, ServiceUrl, Settings, Snapshot, Status
from meshlib.backends import open_backend
from meshlib.discovery.store import SnapshotStore
from meshlib.errors import RegistryUnavailable
from tests.servers.base import eventually, free_port

TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Report:
    """See :class:`tests.faults.consumer.Record`."""

    calls: int
    served: dict[str, int]
    failed: list[tuple[float, str]]
    attempts: list[tuple[float, str]]
    in_flight: int
    from_env_ms: float
    first_call_ms: float | None
    first_source: str | None
    timeline: list[tuple[float, bool, int, int]]
    pauses: list[float]
    wall: float

    def failed_since(self, when: float) -> list[str]:
        """The calls that failed after ``when``, in words."""
        return [f"+{at - when:.3f} s {error}" for at, error in self.failed if at >= when]

    def failed_undisturbed(self, seconds: float) -> list[str]:
        """The calls that failed though the machine had not stood still in the ``seconds`` before."""
        return [error for at, error in self.failed if not any(at - seconds < pause <= at for pause in self.pauses)]

    @property
    def view(self) -> tuple[bool, int, int] | None:
        """The view as it is: live, listed, suspects; None from a process that has only just begun."""
        return self.timeline[-1][1:] if self.timeline else None

    def whole_since(self, instances: int) -> float | None:
        """Since when the view is live and lists ``instances``, none of them a suspect; None when it does not."""
        return self.timeline[-1][0] if self.view == (True, instances, 0) else None

    def loss_seen(self, gone: float) -> float | None:
        """Seconds after ``gone`` at which the view was known not to be live; None when it has not been since."""
        return next((at - gone for at, live, *_ in self.timeline if gone <= at and not live), None)

    def seen_since(self, when: float) -> list[tuple[float, bool, int, int]]:
        """What the view has been since ``when``, the state at that time included."""
        before = [line for line in self.timeline if line[0] < when][-1:]
        return before + [line for line in self.timeline if line[0] >= when]


class Process:
    """One child with a conversation over its standard streams; what it logs goes to a file, as does all of one that is not
    ``spoken`` to: a server stops when it writes of each request to a pipe that nobody reads."""

    def __init__(self, module: str, *arguments: str, env: dict[str, str], log: Path, spoken: bool = True) -> None:
        self.module, self.log = module, log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=env, cwd=TOP, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE if spoken else sink, stderr=sink,
            )  # fmt: skip

    def line(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"{self.module} ended: {self.log.read_text()[-3000:]}")
        return line.strip()

    def ask(self) -> Report:
        """A consumer's report."""
        assert self.process.stdin is not None
        self.process.stdin.write("report\n")
        self.process.stdin.flush()
        said = json.loads(self.line())
        return Report(**{**said, "timeline": [tuple(line) for line in said["timeline"]]})

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout)

    def close(self) -> None:
        """End it, gently where it is a consumer."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.kill()
        self.process.wait()


class Stage:
    """Starts processes with the same registry and state directory, and ends them all. ``env`` are more settings."""

    def __init__(self, registry: str, *, host: str = "127.0.0.1", **env: str) -> None:
        self.room = Path(tempfile.mkdtemp(prefix="meshlib-stage-"))
        self.host = host
        self.env = {**os.environ, "PYTHONPATH": str(TOP), "MESH_REGISTRY": registry,
                    "MESH_STATE_DIR": str(self.room / "state"), **env}  # fmt: skip
        self.processes: list[Process] = []

    def _start(self, module: str, *arguments: str, **env: str) -> Process:
        log = self.room / f"{module.rpartition('.')[2]}-{len(self.processes)}.log"
        process = Process(module, *arguments, env={**self.env, **env}, log=log)
        self.processes.append(process)
        return process

    def provider(
        self, *arguments: str, module: str = "tests.faults.provider", port: str = "", **env: str
    ) -> tuple[str, Process]:
        """A provider that listens, and its port: one that it can have again when it has ended."""
        env = {"MESH_SERVICE": "orders", "MESH_HOST": self.host, "MESH_PORT": port or str(free_port()), **env}
        process = self._start(module, *arguments, **env)
        return process.line().rpartition(" ")[2], process

    def consumer(self, *arguments: str, **env: str) -> Process:
        """A consumer that calls from now on."""
        return self._start("tests.faults.consumer", *arguments, **env)

    def remember(self, port: str, directory: Path | None = None) -> None:
        """Write the snapshot that an earlier process would have left, to ``directory`` or where processes look for it."""
        store = SnapshotStore(directory or Path(self.env["MESH_STATE_DIR"]), registry=self.env["MESH_REGISTRY"], max_age=3600)
        orders = ServiceUrl("orders")
        store.save(Snapshot(orders, (Instance("orders", "orders-1", self.host, int(port)),), confirmed=time.time() - 60))

    def logs(self) -> str:
        """The last that each process logged."""
        return "\n".join(f"--- {file.name}\n{file.read_text()[-1500:]}" for file in sorted(self.room.glob("*.log")))

    def close(self) -> None:
        for process in self.processes:
            process.close()
        shutil.rmtree(self.room, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def newly_listed(registry: str, host: str = "127.0.0.1") -> Iterator[float]:
    """Have one more instance listed, which nobody calls: it is in maintenance. A view that shows it is live indeed. Yields the
    (monotonic) time from which on it could."""
    settings = Settings(registry=RegistryUrl.parse(registry), registry_timeout=20.0)
    newcomer = Instance("orders", "newcomer", host, 9, status=Status.MAINTENANCE)

    async def change(action: str, *more: float) -> None:
        backend = open_backend(settings)
        try:
            for left in (2, 1, 0):  # a server that was frozen has given up connections, and says so to who comes just then
                try:
                    return await getattr(backend.registry, action)(newcomer, *more)  # type: ignore[no-any-return]
                except RegistryUnavailable:
                    if not left:
                        raise
        finally:
            await backend.close()

    asyncio.run(change("register", 60.0))
    yield time.monotonic()
    asyncio.run(change("deregister"))


def everybody_served(consumers: Iterable[Process], ports: Iterable[str], *, within: float = 60.0) -> None:
    """Wait until every instance has answered every consumer."""
    wanted = set(ports)
    for consumer in consumers:
        eventually(partial(_served, consumer, wanted), within=within, what=f"all of {wanted} answer")


def _served(consumer: Process, ports: set[str]) -> bool:
    return ports <= consumer.ask().served.keys()


def soak_seconds() -> float:
    """How long the long outages last (``MESHLIB_SOAK_SECONDS``)."""
    return float(os.environ.get("MESHLIB_SOAK_SECONDS", "60"))
