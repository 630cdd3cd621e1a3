"""The examples run as their first lines say: WSGI and ASGI providers, called by WSGI and ASGI consumers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib import Mesh, Settings
from tests.servers.base import eventually

TOP = Path(__file__).parents[2]


class Processes:
    def __init__(self, state: Path) -> None:
        self.env = {**os.environ, "MESH_STATE_DIR": str(state), "MESH_PORT": "0", "MESH_HOST": "127.0.0.1"}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, module: str, **env: str) -> int:
        """Start an example and return the port it says it listens on."""
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=TOP, env={**self.env, **env}, stdout=subprocess.PIPE, text=True
        )
        self.started.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline().rpartition(" ")[2])


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    tmp_path.chmod(0o700)
    processes = Processes(tmp_path)
    yield processes
    for process in processes.started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def fetched(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/7", timeout=20) as answer:
            return str(answer.read().decode())
    except OSError as problem:
        return str(problem)


@pytest.mark.parametrize("consumer", ["examples.consumer_wsgi", "examples.consumer_asgi"])
def test_consumers_reach_every_provider(processes: Processes, consumer: str) -> None:
    providers = {
        processes.start(module, MESH_SERVICE="orders") for module in ("examples.provider_wsgi", "examples.provider_asgi")
    }
    port = processes.start(consumer)
    expected = {f"order 7: tea, served by port {provider}\n" for provider in providers}
    answers: set[str] = set()

    def all_answered() -> bool:
        answers.add(fetched(port))
        return expected <= answers

    eventually(all_answered, within=60, what=lambda: f"{expected} among {answers}")


@pytest.mark.parametrize("provider", ["examples.provider_wsgi", "examples.provider_asgi"])
def test_sigterm_ends_a_provider_cleanly(processes: Processes, provider: str, tmp_path: Path) -> None:
    port = processes.start(provider, MESH_SERVICE="orders", MESH_TTL="60")
    process = processes.started[0]
    with Mesh(Settings(state_dir=str(tmp_path))) as mesh:

        def listed() -> list[int]:
            snapshot = mesh.snapshot("orders")
            return [each.port for each in snapshot.instances] if snapshot else []

        eventually(lambda: listed() == [port], what="it is registered")
        process.send_signal(signal.SIGTERM)
        # Uvicorn raises the signal again once it has shut down.
        assert process.wait(60) == (-signal.SIGTERM if provider.endswith("asgi") else 0)
        eventually(lambda: listed() == [], what="it has deregistered")
