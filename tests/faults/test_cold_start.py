"""A process starts while its registry is dead: it begins from the disk snapshot, and waits for nobody.

The bounds here are those of meaning (less than any time-out of a registry, which are long ones here); benchmarks/coldstart.py
has the milliseconds. How a process starts in the middle of an outage of a real registry is in test_registry_loss.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.registries import LocalFile
from tests.faults.stage import Process, Report, Stage
from tests.servers.base import eventually, free_port

UNANSWERED = 10_000.0
"""Milliseconds: a third of what a registry has for an answer."""
PATIENT = {"MESH_REGISTRY_TIMEOUT": "30", "MESH_COLD_START_TIMEOUT": "30", "MESH_TIMEOUT": "60"}
"""Who waits for a registry waits for longer than a busy machine takes to start a process."""


@contextmanager
def closed_port() -> Iterator[str]:
    """The address of nobody: connections are refused."""
    yield f"127.0.0.1:{free_port()}"


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that is stopped, or behind a network that drops packets: the kernel connects, nobody answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def full_server() -> Iterator[str]:
    """A server whose kernel does not even connect any more: its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


DEAD = {"refuses": closed_port, "is silent": silent_server, "does not connect": full_server}


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """The port of one that serves, whoever lists it."""
    registry = LocalFile()
    with Stage(registry.url) as stage:
        yield stage.provider()[0]
    registry.close()


def begun(process: Process) -> Report:
    """Its report once it has called."""
    eventually(lambda: process.ask().calls > 0, within=60, what="it calls")
    return process.ask()


@pytest.mark.parametrize("how", DEAD)
@pytest.mark.parametrize("registry", ["consul", "etcd"])
def test_the_first_call_is_answered_from_the_snapshot(registry: str, how: str, provider: str) -> None:
    with DEAD[how]() as address, Stage(f"{registry}://{address}", **PATIENT) as stage:
        stage.remember(provider)
        seen = begun(stage.consumer("--rate", "20"))
    print(f"{registry} {how}: from_env {seen.from_env_ms:.0f} ms, first answer after {seen.first_call_ms:.0f} ms")
    assert not seen.failed
    assert seen.first_source == "disk"
    assert seen.from_env_ms < UNANSWERED  # it asks nobody
    assert seen.first_call_ms is not None
    assert seen.first_call_ms - seen.from_env_ms < UNANSWERED


def test_the_first_call_is_answered_without_the_local_registry(provider: str, tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("here was a registry\n")
    with Stage(f"local://{tmp_path}/registry/registry.db", **PATIENT) as stage:
        stage.remember(provider)
        seen = begun(stage.consumer("--rate", "20"))
    print(f"local: from_env {seen.from_env_ms:.0f} ms, first answer after {seen.first_call_ms:.0f} ms")
    assert not seen.failed
    assert seen.first_source == "disk"
    assert seen.first_call_ms is not None
    assert seen.first_call_ms - seen.from_env_ms < UNANSWERED


def test_a_registry_that_forgot_everything_is_not_believed_by_a_new_process(provider: str) -> None:
    registry = LocalFile()  # made anew by its first user: empty
    with Stage(registry.url) as stage:
        stage.remember(provider)
        consumer = stage.consumer("--rate", "20")
        eventually(lambda: consumer.ask().view == (True, 0, 1), within=60, what="a suspect, which answers")
        seen = begun(consumer)
        assert not seen.failed
        assert seen.view == (True, 0, 1)
    registry.close()


def test_without_a_snapshot_nobody_is_known() -> None:
    with closed_port() as address, Stage(f"etcd://{address}", MESH_COLD_START_TIMEOUT="0.5") as stage:
        seen = begun(stage.consumer("--rate", "20"))
    assert "NoInstances" in seen.failed[0][1]
    assert seen.first_call_ms is None
