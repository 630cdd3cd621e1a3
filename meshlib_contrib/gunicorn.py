"""gunicorn's hooks: ``gunicorn -c python:meshlib_contrib.gunicorn``, or in a configuration of one's own

    from meshlib_contrib.gunicorn import *

Nothing depends on them: without, a worker leaves the mesh when it has stopped to accept. With them it does so before (SIGTERM:
whoever called it is sent elsewhere, and nobody finds it closed), at once when it is to end at once (SIGINT, SIGQUIT, or because
it hangs), and waits for nobody when it has ended its own loop.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from meshlib_contrib.stopping import apart, leave_on_sigterm

__all__ = ["on_exit", "post_worker_init", "when_ready", "worker_abort", "worker_exit", "worker_int"]


def when_ready(server: Any) -> None:
    """The master is about to serve. With ``--preload`` it is registered, too: it leaves first, so that the last of its workers
    knows to be the last, and goes on serving until everybody has heard of it."""
    if _meshes():
        leave_on_sigterm(_leave, ahead_of=lambda handler: getattr(handler, "__self__", None) is server)


def post_worker_init(worker: Any) -> None:
    """A worker has loaded the app."""
    if hasattr(worker, "handle_exit_signal"):
        _on_loop(worker)
        return
    leave_on_sigterm(_leave, ahead_of=lambda handler: getattr(handler, "__self__", None) is worker)
    signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn has it: no system call of a request is interrupted


def _on_loop(worker: Any) -> None:
    """The ASGI worker hears of signals on its loop."""
    loop = worker.loop

    def last() -> None:
        try:
            _leave()
        finally:
            loop.call_soon_threadsafe(worker.handle_exit_signal)

    def on_signal() -> None:
        loop.add_signal_handler(signal.SIGTERM, worker.handle_exit_signal)  # the second one does it at once
        apart(last)

    loop.add_signal_handler(signal.SIGTERM, on_signal)


def worker_int(_worker: Any) -> None:
    """A worker is to end at once, whatever it does."""
    _leave(serving=False, drain=False)


worker_abort = worker_int


def worker_exit(_server: Any, worker: Any) -> None:
    """A worker has ended its loop (and called here by itself; the master calls it for those that it finds dead)."""
    if worker.pid == os.getpid():
        _leave(serving=False)


def on_exit(_server: Any) -> None:
    """The master ends, its workers have."""
    _leave(serving=False)


def _leave(**how: bool) -> None:
    for mesh in _meshes():
        mesh.leave(**how)


def _meshes() -> list[Any]:
    """Whose app uses none, needs none for this."""
    module = sys.modules.get("meshlib.mesh")
    return [] if module is None else module.meshes()
