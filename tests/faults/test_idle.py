"""What a mesh costs before it is used, and after it is closed: no thread, no socket, no file.

Each check is a program in an interpreter of its own, because this one's threads and files are pytest's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.registries import REGISTRIES, Registry
from tests.faults.stage import TOP, Stage
from tests.servers.base import eventually

COUNT = """
import os, socket, sys, time

def threads():
    return len(os.listdir("/proc/self/task"))

def files():
    found = []
    for one in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{one}"))
        except FileNotFoundError:
            pass  # the listing's own
    return sorted(found)

def opened(before):
    return [one for one in files() if one not in before and "/proc/" not in one]

"""

UNUSED = (
    COUNT
    + """
before = threads(), files()
import meshlib
mesh = meshlib.Mesh.from_env()
transport = mesh.transport()
assert threads() == before[0] == 1, threads()
assert not opened(before[1]), opened(before[1])
if "--used" in sys.argv:
    mesh.prefetch("orders")
    assert threads() > 1
"""
)

CYCLES = (
    COUNT
    + """
import asyncio, threading
from meshlib import Mesh
import meshlib.lifecycle
import meshlib.mesh
from tests.faults.consumer import Orders

meshlib.lifecycle.PROPAGATION = 0.0
leaky = "--leaky" in sys.argv

def cycle():
    mesh = Mesh.from_env()
    if leaky:
        kept.append(mesh)
    registration = mesh.register(9)
    registration.wait()
    orders = mesh.client(Orders)
    assert orders.fetch(1).item == "tea"

    async def call():
        assert (await orders.afetch(1)).item == "tea"
        await mesh._async_engine.aclose()

    asyncio.run(call())
    registration.close()
    if not leaky:
        mesh.close()

kept = []
cycle()  # what is made once per process
before = threads(), files()
for _ in range(20):
    cycle()
deadline = time.monotonic() + (1.5 if leaky else 60.0)
while (threads() > before[0] or len(files()) > len(before[1])) and time.monotonic() < deadline:
    time.sleep(0.05)
print(threads() - before[0], len(files()) - len(before[1]), opened(before[1]))
assert threads() <= before[0], threading.enumerate()
assert len(files()) <= len(before[1]), opened(before[1])
"""
)


def run(program: str, *arguments: str, stage: Stage) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=TOP, text=True, capture_output=True,
                          env={**stage.env, "MESH_SERVICE": "idle"}, timeout=300, check=False)  # fmt: skip


@pytest.mark.parametrize("registry", ["local://{room}/registry.db", "consul://127.0.0.1:9", "etcd://127.0.0.1:9"])
def test_nothing_is_started_before_it_is_used(registry: str, tmp_path: Path) -> None:
    with Stage(registry.format(room=tmp_path)) as stage:
        for arguments in ((), ("--used",)):  # with the control: a use is seen
            done = run(UNUSED, *arguments, stage=stage)
            assert done.returncode == 0, done.stderr


@pytest.fixture(params=REGISTRIES)
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    made: Registry = REGISTRIES[request.param]()
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_closed_mesh_leaves_nothing_behind(registry: Registry) -> None:
    with Stage(registry.url, host=registry.serve_at) as stage:
        stage.provider()
        eventually(lambda: registry.listed() == 1, within=60, what="the provider is registered")
        done = run(CYCLES, stage=stage)
        print(done.stdout.strip())
        assert done.returncode == 0, done.stderr + done.stdout
        leaky = run(CYCLES, "--leaky", stage=stage)
        more, *_ = leaky.stdout.split(maxsplit=1)
        assert int(more) >= 20, f"the control has leaked nothing: {leaky.stderr}"
