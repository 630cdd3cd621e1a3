"""A rolling restart under load: two instances, restarted in turn, at 200 calls a second, and no call fails."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.registries import LocalFile
from tests.faults.stage import Process, Stage, eventually
from tests.servers.base import free_port

CONSUMERS = {"sync": ("--kind", "sync", "--rate", "100"), "async": ("--kind", "async", "--rate", "100")}
GUNICORN = ["-k", "gthread", "--workers", "2", "--threads", "8", "--no-control-socket", "--bind"]
CASES = [
    ("gunicorn", 6),
    ("uvicorn", 4),
    pytest.param("gunicorn", 50, marks=pytest.mark.soak),
    pytest.param("gunicorn hooks", 50, marks=pytest.mark.soak),
    pytest.param("uvicorn", 50, marks=pytest.mark.soak),
    pytest.param("in order", 50, marks=pytest.mark.soak),  # one at a time: tests/faults/test_stop.py
]


SERVERS = {
    "gunicorn": ("gunicorn", "tests.fork.orders:wsgi", *GUNICORN, "127.0.0.1:{port}"),
    "gunicorn hooks": ("gunicorn", "--config", "python:meshlib_contrib.gunicorn", "tests.fork.orders:wsgi", *GUNICORN,
                       "127.0.0.1:{port}"),
    "uvicorn": ("uvicorn", "tests.fork.orders_asgi:app", "--port", "{port}"),
}  # fmt: skip
KEEP_ALIVE = 3.0
"""Seconds, more than gunicorn's 2 for idle connections: where the machine itself stands still, they end on all instances at
the same moment, also on the one that a call goes to because it has met the end of the other."""
IN_ORDER = ("in order", "gunicorn hooks", "uvicorn")
"""They leave before they stop to serve."""


class Server(Process):
    """An instance: a server with two workers."""

    def __init__(self, kind: str, port: int, *, env: dict[str, str], log: Path) -> None:
        module, *words = (word.format(port=port) for word in SERVERS[kind])
        env = {**env, "MESH_SERVICE": "orders", "MESH_PORT": str(port)}
        super().__init__(module, *words, env=env, log=log, spoken=False)


@pytest.fixture
def registry() -> Iterator[LocalFile]:
    made = LocalFile()
    yield made
    made.close()


@pytest.fixture
def stage(registry: LocalFile) -> Iterator[Stage]:
    with Stage(registry.url) as made:
        yield made


def start(stage: Stage, kind: str, port: int) -> Process:
    if kind in SERVERS:
        process: Process = Server(kind, port, env=stage.env, log=stage.room / f"{port}.log")
        stage.processes.append(process)
        return process
    return stage.provider(port=str(port))[1]


def until_served_by(consumers: list[Process], ports: list[int], since: list[dict[str, int]]) -> None:
    """Wait until both instances have answered every consumer again."""

    def served() -> bool:
        seen = [consumer.ask().served for consumer in consumers]
        return all(now.get(str(port), 0) > before.get(str(port), 0)
                   for now, before in zip(seen, since, strict=True) for port in ports)  # fmt: skip

    eventually(served, within=60, what=f"both of {ports} answer")


@pytest.mark.parametrize(("kind", "restarts"), CASES)
def test_a_rolling_restart_fails_no_call(registry: LocalFile, stage: Stage, kind: str, restarts: int) -> None:
    """An instance that deregisters before it stops to serve has callers that may not repeat a call."""
    ports = [free_port(), free_port()]
    running = [start(stage, kind, port) for port in ports]
    eventually(lambda: registry.listed() == 2, within=60, what="both are registered")
    more = ("--post",) if kind in IN_ORDER else ()
    consumers = [stage.consumer(*options, *more) for options in CONSUMERS.values()]
    until_served_by(consumers, ports, [{}, {}])
    began = time.monotonic()
    for number in range(restarts):
        turn = number % 2
        running[turn].signal(signal.SIGTERM)
        running[turn].wait(60)
        before = [consumer.ask().served for consumer in consumers]
        running[turn] = start(stage, kind, ports[turn])
        until_served_by(consumers, ports, before)
    took = time.monotonic() - began
    for consumer, name in zip(consumers, CONSUMERS, strict=True):
        seen = consumer.ask()
        print(f"{kind}, {restarts} restarts in {took:.0f} s, {name}: {seen.calls} calls, {len(seen.attempts)} attempts failed, "
              f"{len(seen.failed)} calls failed")  # fmt: skip
        assert seen.calls > took * 10, "it was called all the time"
        assert not seen.failed_undisturbed(KEEP_ALIVE), seen.failed
