"""Leaving the mesh on SIGTERM, before what the signal is for; and gunicorn's hooks, which do that for its processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshlib_contrib import gunicorn, stopping
from tests.servers.base import eventually


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


class Server:
    """Of the family of ``module``: notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.ended = threading.Event()
        self.pid = os.getpid()

    def await_end(self) -> None:
        """As servers do: by looking again and again. Who blocks may miss a signal that comes just before."""
        eventually(self.ended.is_set, what="it hears of it")

    def handle_exit(self, *_: object) -> None:
        self.heard.append("exit")
        self.ended.set()

    def leave(self, **how: bool) -> None:
        self.heard.append(f"left {how}" if how else "left")


class Uvicorn(Server):
    """What is told apart by its module."""


Uvicorn.__module__ = "uvicorn.server"


def current() -> Any:
    return signal.getsignal(signal.SIGTERM)


class TestLeaveFirst:
    @staticmethod
    def first(server: Server, service: str = "shop") -> None:
        stopping.leave_first(SimpleNamespace(settings=SimpleNamespace(service=service), leave=server.leave))  # type: ignore[arg-type]

    def test_ahead_of_uvicorn(self) -> None:
        server = Uvicorn()
        signal.signal(signal.SIGTERM, server.handle_exit)
        self.first(server)
        signal.raise_signal(signal.SIGTERM)
        server.await_end()
        assert server.heard == ["left", "exit"]
        assert current() == server.handle_exit, "the second one does it at once"

    def test_who_handles_it_otherwise_is_left_alone(self) -> None:
        server = Server()
        signal.signal(signal.SIGTERM, server.handle_exit)
        self.first(server)
        assert current() == server.handle_exit

    def test_who_registers_nothing_is_left_alone(self) -> None:
        self.first(Uvicorn(), service="")
        assert current() is signal.SIG_DFL

    def test_other_threads_are(self) -> None:
        thread = threading.Thread(target=self.first, args=(Server(),))
        thread.start()
        thread.join()
        assert current() is signal.SIG_DFL

    def test_with_nobody_else_the_process_ends_by_it(self) -> None:
        program = (
            "import os, signal\nfrom meshlib_contrib.stopping import leave_on_sigterm\n"
            "leave_on_sigterm(lambda: print('left', flush=True))\nsignal.raise_signal(signal.SIGTERM)\nsignal.pause()"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
        assert (done.stdout, done.returncode) == ("left\n", -signal.SIGTERM)

    def test_a_child_that_inherited_it_is_not_ours(self) -> None:
        program = (
            "import os, signal\nfrom meshlib_contrib.stopping import leave_on_sigterm\n"
            "leave_on_sigterm(lambda: print('left', flush=True))\nchild = os.fork()\n"
            "if child == 0:\n    signal.raise_signal(signal.SIGTERM)\n    signal.pause()\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout == f"{-signal.SIGTERM}\n"


class TestGunicorn:
    @pytest.fixture(autouse=True)
    def server(self, monkeypatch: pytest.MonkeyPatch) -> Server:
        """A master or a worker whose app has a mesh."""
        server = Server()
        monkeypatch.setattr(gunicorn, "_meshes", lambda: [server])
        return server

    @pytest.mark.parametrize("hook", [gunicorn.when_ready, gunicorn.post_worker_init])
    def test_it_leaves_before_it_stops(self, server: Server, hook: Callable[[Any], None]) -> None:
        signal.signal(signal.SIGTERM, server.handle_exit)
        hook(server)
        signal.raise_signal(signal.SIGTERM)
        server.await_end()
        assert server.heard == ["left", "exit"]

    def test_a_master_without_one_is_left_alone(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gunicorn, "_meshes", list)
        signal.signal(signal.SIGTERM, server.handle_exit)
        gunicorn.when_ready(server)
        assert current() == server.handle_exit

    def test_one_on_an_event_loop(self, server: Server) -> None:
        async def serve() -> None:
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()

            def exit_signal() -> None:
                server.heard.append("exit")
                ended.set()

            loop.add_signal_handler(signal.SIGTERM, exit_signal)
            gunicorn.post_worker_init(SimpleNamespace(loop=loop, handle_exit_signal=exit_signal))
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(ended.wait(), 10)
            loop.remove_signal_handler(signal.SIGTERM)

        asyncio.run(serve())
        assert server.heard == ["left", "exit"]

    @pytest.mark.parametrize("hook", [gunicorn.worker_int, gunicorn.worker_abort])
    def test_at_once(self, server: Server, hook: Callable[[Any], None]) -> None:
        hook(server)
        assert server.heard == ["left {'serving': False, 'drain': False}"]

    def test_a_loop_has_ended(self, server: Server) -> None:
        gunicorn.worker_exit(None, server)
        gunicorn.worker_exit(None, SimpleNamespace(pid=1))  # the master tells of one that is dead
        gunicorn.on_exit(None)
        assert server.heard == ["left {'serving': False}"] * 2

    def test_gunicorn_takes_them_all(self) -> None:
        from gunicorn.config import Config

        config = Config()
        for name in gunicorn.__all__:
            config.set(name, getattr(gunicorn, name))


def test_who_uses_no_mesh_needs_none_for_the_hooks() -> None:
    program = (
        "import sys\nfrom meshlib_contrib import gunicorn\ngunicorn.worker_exit(None, type('W', (), {'pid': __import__('os').getpid()}))\n"
        "gunicorn.on_exit(None)\nassert 'meshlib.mesh' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], timeout=120, check=True)
