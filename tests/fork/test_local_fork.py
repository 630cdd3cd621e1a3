"""The local registry over forks: what a child opens, it holds locks of its own on; and who is busy does not notice a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshlib.backends.local_fork import Gate

TOP = Path(__file__).resolve().parents[2]

OPEN = """
import json, os, sys
from meshlib import Mesh
from meshlib.backends import local_fork
if "off" in sys.argv:  # connections stay open over the fork
    local_fork._before = local_fork.gate.shut
mesh = Mesh.from_env()
mesh.register(8080).wait()

def files():
    paths = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name != "0"
             and os.path.lexists(f"/proc/self/fd/{name}")]
    return sorted({path for path in paths if "registry.db" in path})

def locked():
    inode = os.stat(os.environ["SHM"]).st_ino
    # The kernel's list may skip one while others come and go: only what is never there is not there.
    return any(f":{inode} " in line and f" {os.getpid()} " in line for _ in range(20) for line in open("/proc/locks"))

def use():
    assert mesh.snapshot("users", timeout=10) is not None  # an empty list is an answer

child = os.fork()
if child == 0:
    inherited = files()
    use()
    print(json.dumps({"inherited": inherited, "opened": bool(files()), "locked": locked()}), flush=True)
    os._exit(0)
os.waitpid(child, 0)
use()
print(json.dumps(locked()))
mesh.close()
"""

BUSY = """
import asyncio, os, threading, time
from meshlib.backends import open_backend
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings
backend = open_backend(Settings.load())
one = Instance("orders", "o-1", "10.0.0.5", 80)
stopping = threading.Event()

done = 0

async def busy():
    global done
    await backend.registry.register(one, 30)
    while not stopping.is_set():
        assert await backend.registry.heartbeat(one, 30)
        assert len((await backend.registry.fetch(ServiceUrl("orders"))).instances) == 1
        done += 1
    await backend.close()

thread = threading.Thread(target=lambda: asyncio.run(busy()))
thread.start()
for _ in range(60):
    before = done
    while done == before and thread.is_alive():
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
stopping.set()
thread.join()
print(done)
"""


def run(program: str, tmp_path: Path, *arguments: str) -> list[Any]:
    registry = tmp_path / "registry.db"
    env = {**os.environ, "MESH_REGISTRY": f"local://{registry}", "MESH_STATE_DIR": str(tmp_path / "state"), "SHM": f"{registry}-shm",
           "MESH_SERVICE": "orders", "PYTHONWARNINGS": "ignore::DeprecationWarning"}  # fmt: skip
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=env, cwd=TOP, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_child_inherits_nothing_open_and_holds_its_own_locks(tmp_path: Path) -> None:
    child, parent = run(OPEN, tmp_path)
    assert child == {"inherited": [], "opened": True, "locked": True}
    assert parent is True


def test_the_control_over_an_open_connection_a_child_goes_without_locks(tmp_path: Path) -> None:
    """So that the next process takes the shared memory for its own, truncates it, and the child dies of SIGBUS."""
    child, _ = run(OPEN, tmp_path, "off")
    assert child["inherited"]
    assert not child["locked"]


def test_who_is_busy_does_not_notice_a_fork(tmp_path: Path) -> None:
    (done,) = run(BUSY, tmp_path)
    assert done >= 60


def test_a_fork_waits_for_who_is_inside_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, pauses = Gate(), []

    def leave() -> None:
        pauses.append(1)
        if len(pauses) == 3:
            inside.__exit__(None, None, None)

    monkeypatch.setattr("meshlib.backends.local_fork._pause", leave)
    inside = gate.passed()
    inside.__enter__()
    assert gate.shut()
    assert len(pauses) == 3
    gate.open()
    inside = gate.passed()
    inside.__enter__()
    monkeypatch.setattr("meshlib.backends.local_fork.PATIENCE", -1.0)
    assert not gate.shut()


def test_nobody_gets_in_during_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, pauses = Gate(), []

    def end_one() -> None:
        pauses.append(1)
        gate.open()

    monkeypatch.setattr("meshlib.backends.local_fork._pause", end_one)
    assert gate.shut()
    assert gate.shut()  # by another thread
    with gate.passed():
        assert len(pauses) == 2
