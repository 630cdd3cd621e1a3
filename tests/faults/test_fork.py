"""A process that uses a mesh forks: both go on calling, and what the child does at its end is not the parent's end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.registries import REGISTRIES, Registry
from tests.faults.stage import TOP, Stage
from tests.servers.base import eventually

PROGRAM = """
import asyncio, multiprocessing, os, sys, warnings
import meshlib.lifecycle
import meshlib.mesh
meshlib.lifecycle.PROPAGATION = 0.1
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: it is what is tested here
from meshlib import Mesh
from tests.faults.consumer import Orders

mesh = Mesh.from_env()
registration = mesh.register(9)  # nobody serves there: what picks it goes elsewhere
registration.wait()
orders = mesh.client(Orders)

async def acall():
    for number in range(20):
        assert (await orders.afetch(number)).item == "tea"

def call(who):
    for number in range(20):
        assert orders.fetch(number).item == "tea"
    asyncio.run(acall())
    assert mesh.view("orders").followed, who

def child():
    call("child")
    if "close" in sys.argv:
        mesh.close()

call("parent")
print("used", flush=True)
if "os.fork" in sys.argv:
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)  # with the exit handlers: the registration must not be theirs
    call("parent, meanwhile")
    assert os.waitpid(pid, 0)[1] == 0
else:
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    call("parent, meanwhile")
    process.join(60)
    assert process.exitcode == 0, process.exitcode
call("parent, alone")
print("forked", flush=True)
sys.stdin.read()
mesh.close()
print("closed", flush=True)
"""


@pytest.fixture(params=REGISTRIES, scope="module")
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    made: Registry = REGISTRIES[request.param]()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def stage(registry: Registry) -> Iterator[Stage]:
    # The lease outlasts every test: who is gone has deregistered.
    with Stage(registry.url, host=registry.serve_at, MESH_SERVICE="orders", MESH_TTL="300") as made:
        made.provider()
        eventually(lambda: registry.listed() == 1, within=60, what="the provider is registered")
        yield made


@pytest.mark.parametrize("arguments", [("os.fork",), ("os.fork", "close"), ("multiprocessing", "close")], ids=" ".join)
def test_a_fork_leaves_the_parent_registered_and_both_can_call(
    registry: Registry, stage: Stage, arguments: tuple[str, ...]
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=TOP, text=True, env=stage.env,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert parent.stdout is not None
        assert (parent.stdout.readline(), parent.stdout.readline()) == ("used\n", "forked\n"), parent.communicate("")[1]
        assert registry.listed() == 2
        out, err = parent.communicate("", timeout=120)
        assert (parent.returncode, out) == (0, "closed\n"), err
        # The control: its own end does deregister it. (An agent of Consul's tells its servers later.)
        eventually(lambda: registry.listed() == 1, within=60, what="the parent's own end deregisters it")
        assert "Traceback" not in err
    finally:
        parent.kill()
        parent.communicate()
