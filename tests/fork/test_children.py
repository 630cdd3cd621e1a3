"""Processes that a registered one forks: who of them serves has its part in the entry, who only computes has none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.registries import LocalFile
from tests.servers.base import eventually

TOP = Path(__file__).resolve().parents[2]
TTL = 6.0

PROGRAM = """
import os, sys, time
from meshlib import Mesh
mesh = Mesh.from_env()
app = mesh.wsgi(lambda environ, start_response: [])
mesh.register(8080).wait()
child = os.fork()
if child == 0:
    mesh.snapshot("orders")  # both use the mesh
    if "serves" in sys.argv:
        app({}, lambda *_: None).close()
        mesh._registrations[0].wait()
    print(os.getpid(), flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("what", ["serves", "computes"])
def test_when_its_parent_dies_a_child_keeps_the_entry_only_if_it_serves(what: str, tmp_path: Path) -> None:
    registry = LocalFile()
    env = {**os.environ, "MESH_REGISTRY": registry.url, "MESH_STATE_DIR": str(tmp_path), "MESH_SERVICE": "orders",
           "MESH_TTL": str(TTL), "PYTHONWARNINGS": "ignore::DeprecationWarning"}  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, what], env=env, cwd=TOP, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        eventually(lambda: registry.listed() == 1, within=60, what="it is registered")
        parent.kill()
        parent.wait()
        if what == "computes":
            eventually(lambda: registry.listed() == 0, within=60, what="it has expired")
            os.kill(child, 0)  # although the child lives
        else:
            with pytest.raises(pytest.fail.Exception):  # longer than it would live on by itself
                eventually(lambda: registry.listed() != 1, within=1.5 * TTL)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        registry.close()


IMPORTS = """
import json, os, threading
before = os.listdir("/proc/self/fd")
import meshlib, meshlib.mesh, meshlib.backends.local, meshlib.backends.etcd, meshlib.backends.static, meshlib.discovery.siblings
for name in meshlib.__all__:
    getattr(meshlib, name)
mesh = meshlib.Mesh.from_env()
app, other = mesh.wsgi(print), mesh.asgi(print)
http = mesh.http("orders")
opened = len(os.listdir("/proc/self/fd")) - len(before)
if "call" in os.environ:
    mesh.snapshot("orders")
print(json.dumps([len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")) - len(before)]))
mesh.close()
"""


@pytest.mark.parametrize("used", [False, True], ids=["imported", "the control: used"])
def test_importing_and_making_a_mesh_starts_no_thread_and_opens_nothing(used: bool, tmp_path: Path) -> None:
    env = {**os.environ, "MESH_STATE_DIR": str(tmp_path), "MESH_SERVICE": "orders"} | ({"call": "1"} if used else {})
    command = [sys.executable, "-c", IMPORTS]
    said = subprocess.run(command, env=env, cwd=TOP, capture_output=True, text=True, check=True, timeout=300).stdout
    tasks, files = json.loads(said)
    assert (tasks > 1, files > 0) == (used, used)


DJANGO = """
import os, signal, threading
from django.conf import settings
settings.configure(MESH={"REGISTRY": "static://stock=10.0.0.1:80"})
from meshlib_contrib.django import own

making, made = threading.Event(), threading.Event()
thread = threading.Thread(target=lambda: own._once("parent", lambda: (making.set(), made.wait())))
thread.start()
making.wait()
if (child := os.fork()) == 0:
    signal.alarm(30)
    print(own.get_mesh().settings.registry.scheme, flush=True)
    os._exit(0)
os.waitpid(child, 0)
made.set()
thread.join()
"""


def test_a_thread_of_the_parent_was_making_what_django_has_of_the_mesh(tmp_path: Path) -> None:
    env = {**os.environ, "MESH_STATE_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    done = subprocess.run([sys.executable, "-c", DJANGO], env=env, cwd=TOP, capture_output=True, text=True, timeout=120,
                          check=False)  # fmt: skip
    assert done.stdout == "static\n", done.stderr
