"""Celery's workers: each child of a pool calls, closes what it had, and nobody is registered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from meshlib import Mesh, Settings
from tests.fork.stage import _Stock
from tests.servers.base import eventually

TOP = Path(__file__).parents[2]
APP = "tests.integration.apps.celery_app"
WORKER = ["-m", "celery", "-A", APP, "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "info", "--without-gossip",
          "--without-mingle", "--without-heartbeat"]  # fmt: skip


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Future[bool]]]:
    """They mostly wait for Celery to start: at the same time."""
    rooms = [tmp_path_factory.mktemp("celery") for _ in range(2)]
    with ThreadPoolExecutor(2) as executor:
        told = [executor.submit(story, room, without) for without, room in enumerate(rooms)]
        yield lambda without: told[without]


@pytest.mark.parametrize("without", [False, True], ids=["consume", "the control: without"])
def test_each_child_calls_and_closes(stories: Callable[[bool], Future[bool]], without: bool) -> None:
    assert stories(without).result() is not without


@contextmanager
def stock(room: Path) -> Iterator[None]:
    """Have "stock" registered in ``room``."""
    room.chmod(0o700)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stock)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with Mesh(Settings(state_dir=str(room), service="stock")) as mesh:
        mesh.register(server.server_address[1]).wait()
        yield
        mesh.leave(serving=False)
    server.shutdown()
    thread.join()
    server.server_close()


def story(room: Path, without: int) -> bool:
    """Tasks are sent, answered by children of a pool, and the worker ends. Returns whether all of them closed what they had."""
    env = {**os.environ, "ROOM": str(room), "MESH_STATE_DIR": str(room), "MESH_SERVICE": "shop", "MESH_PORT": "8080",
           "PYTHONWARNINGS": "ignore"} | ({"without": "1"} if without else {})  # fmt: skip
    with stock(room), (room / "log").open("wb") as log:
        worker = subprocess.Popen([sys.executable, *WORKER], env=env, cwd=TOP, stdout=log, stderr=log)
        try:
            children = calling(room, env, worker.pid)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
    left = {path.name: json.loads(path.read_text()) for path in room.glob("left-*")}
    assert {f"left-{pid}" for pid in children} <= set(left), (room / "log").read_text()[-3000:]
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children), what="they have ended")
    return not any(left.values())


def calling(room: Path, env: dict[str, str], worker: int) -> set[int]:
    """Send tasks; returns who has called, of which nobody is registered."""
    sent = [sys.executable, "-m", APP, "6"]
    done = subprocess.run(sent, env=env, cwd=TOP, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + (room / "log").read_text()[-3000:]
    answers = json.loads(done.stdout)
    assert [level for level, _ in answers] == [7] * 6
    with Mesh(Settings(state_dir=str(room))) as mesh:
        assert mesh.services() == ["stock"]
    children = {pid for _, pid in answers}
    assert (len(children), worker in children) == (2, False)
    return children
