"""One server of "shop" under observation: what the registry lists is looked at all the time, and its workers are called."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from meshlib import Mesh, Settings
from tests.servers.base import eventually, free_port

TOP = Path(__file__).resolve().parents[2]
TTL = 15.0  # the default
HEARTBEAT = TTL / 3
SAMPLE = 0.01
"""Seconds between two looks at the registry."""


@dataclass(frozen=True)
class Cell:
    """A server: its command line, and what can be done to it."""

    name: str
    command: list[str]
    workers: int
    preload: bool = False
    limited: bool = False
    """Its workers end by themselves after so many requests."""


def gunicorn(kind: str, workers: int, *, preload: bool = False, requests: int = 0, hooks: bool = False) -> Cell:
    """``kind`` is a worker class of gunicorn's; each worker ends after ``requests``, if any. ``hooks`` are ours."""
    app = "tests.fork.app:" + ("asgi" if kind in ("asgi", "uvicorn_worker.UvicornWorker") else "wsgi")
    command = ["-m", "gunicorn", app, "-k", kind, "--workers", str(workers), "--bind", "127.0.0.1:{port}",
               "--max-requests", str(requests), "--graceful-timeout", "10", "--log-level", "info",
               "--no-control-socket"]  # fmt: skip
    name = f"gunicorn {kind} x{workers}" + (" preload" if preload else "") + (" hooks" if hooks else "")
    more = ["--preload"] * preload + ["--config", "python:meshlib_contrib.gunicorn"] * hooks
    return Cell(name, command + more, workers, preload, limited=requests > 0)


def uvicorn(workers: int) -> Cell:
    """Without a limit: its workers get about as many requests each, and those that all end at once do leave the registry,
    as only gunicorn tells that others are to come."""
    return Cell(f"uvicorn x{workers}", ["-m", "uvicorn", "tests.fork.app:asgi", "--workers", str(workers), "--port", "{port}",
                                         "--timeout-worker-healthcheck", "15"], workers)  # fmt: skip


def granian(interface: str, workers: int) -> Cell:
    """``interface`` is asgi or wsgi. It stops an old worker whether or not the one before has a successor that is up: a busy
    machine is given some time for that."""
    command = ["-m", "granian", f"tests.fork.app:{interface}", "--interface", interface, "--workers", str(workers),
               "--port", "{port}", "--respawn-failed-workers", "--respawn-interval", "8"]  # fmt: skip
    return Cell(f"granian {interface} x{workers}", command, workers)


def hypercorn(kind: str, workers: int) -> Cell:
    """``kind`` is asgi or wsgi."""
    command = ["-m", "hypercorn", f"tests.fork.app:{kind}", "--workers", str(workers), "--bind", "127.0.0.1:{port}"]
    return Cell(f"hypercorn {kind} x{workers}", command, workers)


def pool(method: str, workers: int) -> Cell:
    """``method`` is one of multiprocessing's."""
    return Cell(f"multiprocessing {method} x{workers}", ["-m", "tests.fork.pool", method, str(workers)], workers)


@dataclass
class Seen:
    """What the registry listed for "shop", a line for each change: when, and the ``(id, generation, status)`` of each."""

    timeline: list[tuple[float, tuple[tuple[str, str, str], ...]]] = field(default_factory=list)

    def always_one(self, start: float, end: float) -> bool:
        """True when exactly one instance was listed at any time from ``start`` to ``end``."""
        return all(len(listed) == 1 for at, listed in self.timeline if start <= at < end)

    @property
    def now(self) -> tuple[tuple[str, str, str], ...]:
        return self.timeline[-1][1] if self.timeline else ()

    @property
    def generation(self) -> str | None:
        """That of the instance that is listed; None while there is none."""
        return self.now[0][1] if self.now else None

    @property
    def generations(self) -> set[str]:
        """All that there have been."""
        return {listed[0][1] for _, listed in self.timeline if listed}


class _Stock(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"7")

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker was killed in the middle of a call: say nothing."""


class Stage:
    """Starts ``cell``'s server, with a local registry in a directory of its own in which "stock" is listed as well."""

    def __init__(self, cell: Cell, *, without: str = "", rate: float = 60.0, drain_wait: float = 0.0, ttl: float = TTL) -> None:
        self.cell, self.port, self.rate, self.without = cell, free_port(), rate, without
        self.room = Path(tempfile.mkdtemp(prefix="meshlib-fork-"))
        self.registry = self.room / "registry.db"
        self.env = {**os.environ, "PYTHONPATH": str(TOP), "PYTHONWARNINGS": "ignore::DeprecationWarning",
                    "MESH_REGISTRY": f"local://{self.registry}", "MESH_STATE_DIR": str(self.room / "state"),
                    "MESH_SERVICE": "shop", "MESH_PORT": str(self.port), "MESH_TTL": str(ttl),
                    "MESH_CONNECT_TIMEOUT": "30",  # to the one that there is of "stock": no call may fail of a busy machine
                    "MESH_DRAIN_TIMEOUT": "5", "MESH_DRAIN_WAIT": str(drain_wait), "FORK_WITHOUT": without}  # fmt: skip
        self.seen = Seen()
        self.answers: dict[int, list[dict[str, Any]]] = {}
        """What each worker has answered, by its pid, in the order in which they came."""
        self.failed: list[str] = []
        self._ending = threading.Event()
        self.server: subprocess.Popen[bytes] | None = None

    # -- its life

    def __enter__(self) -> Self:
        self._stock = _Server(("127.0.0.1", 0), _Stock)
        settings = Settings(registry=f"local://{self.registry}", state_dir=str(self.room / "state"), service="stock")
        self._mesh = Mesh(settings)
        self._mesh.register(self._stock.server_address[1]).wait()
        command = [sys.executable, *(part.format(port=self.port) for part in self.cell.command)]
        with (self.room / "server.log").open("wb") as log:
            self.server = subprocess.Popen(command, env=self.env, cwd=TOP, stdout=log, stderr=log)
        self._threads = [threading.Thread(target=work) for work in (self._stock.serve_forever, self._watch, self._call)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        if problem is not None:
            problem.add_note(f"{self.cell.name}: {self.seen.timeline}\n{self.failed[-5:]}\n{self.log()[-20000:]}")
        pids = self.workers()
        assert self.server is not None
        self.server.kill()
        self.server.wait()
        for pid in pids:  # of a server that had to be killed
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._ending.set()
        self._stock.shutdown()
        for thread in self._threads:
            thread.join()
        self._stock.server_close()
        for registration in list(self._mesh._registrations):
            registration.stopped()
        self._mesh.close()
        shutil.rmtree(self.room, ignore_errors=True)

    def log(self) -> str:
        """What the server and the library said, the calls left out."""
        lines = (self.room / "server.log").read_text(errors="replace").splitlines(keepends=True)
        return "".join(line for line in lines if "GET /" not in line and "Autorestarting" not in line)

    @property
    def server_pid(self) -> int:
        assert self.server is not None
        return self.server.pid

    # -- observing

    def _watch(self) -> None:
        alive = """SELECT id, json_extract(document, '$.generation'), json_extract(document, '$.status') FROM instances
                   WHERE service = 'shop' AND expires > ?"""
        with closing(sqlite3.connect(f"file:{self.registry}?mode=ro", uri=True, timeout=5)) as reader:
            while not self._ending.wait(SAMPLE):
                with suppress(sqlite3.OperationalError):  # locked, by whoever has to repair it after a death: looked at again
                    listed = tuple(sorted(reader.execute(alive, (time.monotonic(),)).fetchall()))
                    if not self.seen.timeline or self.seen.now != listed:
                        self.seen.timeline.append((time.monotonic(), listed))

    def _call(self) -> None:
        while not self._ending.wait(1 / self.rate):
            try:
                self.ask()
            except (OSError, http.client.HTTPException):  # a worker was killed at it: this client has no failover
                pass
            except Exception as problem:
                self.failed.append(repr(problem))

    def ask(self) -> dict[str, Any]:
        """One call on a connection of its own, so that any worker may get it; raises what http.client raises."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with closing(connection):
            connection.request("GET", "/")
            response = connection.getresponse()
            body = response.read()
        if response.status != 200:
            self.failed.append(f"{response.status} {body[:200]!r}")
            return {}
        said: dict[str, Any] = json.loads(body)
        self.answers.setdefault(said["pid"], []).append(said)
        return said

    # -- processes

    def workers(self) -> list[int]:
        """The children of the server, the youngest last, those of multiprocessing's helpers left out."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                if int(stat[1]) == self.server_pid and stat[0] != "Z" and b"resource_tracker" not in command:
                    found.append((int(stat[19]), int(name)))
        return [pid for _, pid in sorted(found)]

    def registrar(self) -> int | None:
        """Who has the registrar's lock, asked of the kernel."""
        holders = self.lock_holders()
        return holders[0] if holders else None

    def lock_holders(self, byte: int = 0) -> list[int]:
        """The processes with a lock on ``byte`` of the file that the siblings share."""
        files = {str(path.stat().st_ino) for path in (self.room / "state" / "siblings").glob("shop-*")}
        found = []
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "POSIX" and fields[5].rpartition(":")[2] in files and fields[6] == str(byte):
                found.append(int(fields[4]))
        return found

    def files(self, pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    def tasks(self, pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/task"))

    def answering(self) -> set[int]:
        """The living workers that have answered."""
        return {pid for pid in self.workers() if any("level" in said for said in self.answers.get(pid, ()))}

    # -- scenes

    def up(self) -> float:
        """Wait until it is listed and every worker has answered. Returns the time of the first listing."""
        eventually(lambda: self._ready(), within=120, what="all workers answer")
        return next(at for at, listed in self.seen.timeline if listed)

    def _ready(self) -> bool:
        assert self.server is not None
        assert self.server.poll() is None, self.log()[-3000:]
        elected = len(self.lock_holders()) == 1 or self.without == "election"
        return bool(self.seen.now) and len(self.answering()) >= self.cell.workers and elected

    def kill_a_worker(self) -> float:
        """SIGKILL the registrar, if it is a worker, else any. Returns the seconds until there was a registrar again."""
        victims: list[int] = []

        def killed() -> bool:
            """None is there while the only one is replaced, and one that is about to end may be gone by now."""
            registrar, workers = self.registrar(), self.workers()
            for victim in [registrar] if registrar in workers else workers[:1]:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    victims.append(victim)
            return bool(victims)

        eventually(killed, within=60, what="a worker is killed")
        return eventually(lambda: self.registrar() not in (None, *victims), within=60, what="another registrar")

    def registrars(self) -> int:
        """How many of the living workers say that they keep the entry."""
        return sum(self.answers[pid][-1]["registrar"] for pid in self.answering())

    def hang_up(self) -> None:
        """SIGHUP, once all workers answer: of one that was killed there is a successor by then, or a server that replaces them
        one by one would have none left. Wait until those of before are gone and as many others answer."""
        assert self.server is not None
        eventually(self._ready, within=120, what="all workers answer again")
        old = set(self.workers())
        self.server.send_signal(signal.SIGHUP)
        eventually(lambda: not old & set(self.workers()) and self._ready(), within=120, what="all workers are others")

    def recycle(self, count: int, *, settle: bool = True) -> None:
        """Wait until ``count`` more workers have taken the place of such as had served enough, or were told to end;
        ``settle``: and all that live have answered."""
        before = len(self.answers)
        if self.cell.limited:
            eventually(lambda: len(self.answers) >= before + count and (not settle or self._ready()), within=240,
                       what="workers are recycled")  # fmt: skip
            return
        for _ in range(count):
            leaving = self.workers()[0]
            os.kill(leaving, signal.SIGTERM)
            eventually(lambda one=leaving: one not in self.workers() and self._ready(), within=120, what="a worker is replaced")  # type: ignore[misc]

    def holding(self, what: str) -> list[int]:
        """How many ``files`` or ``tasks`` (threads) each worker had at its last answer, in the order of their first ones."""
        return [said[-1][what] for said in list(self.answers.values())]

    def end(self) -> float:
        """SIGTERM. Returns the time of it; it has ended then."""
        assert self.server is not None
        before = time.monotonic()
        self.server.terminate()
        self.server.wait(60)
        return before
