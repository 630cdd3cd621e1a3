"""How a process is told to stop, and leaves the mesh before it does: while it still serves, so that no call is lost."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib import Mesh


def leave_on_sigterm(leave: Callable[[], object], *, ahead_of: Callable[[Any], bool] = lambda _: False) -> None:
    """Have SIGTERM run ``leave()`` while the server still serves, and only then do what it would have done: end the process, or
    call a handler for which ``ahead_of`` says so. Who handles the signal otherwise, or does so later, is left alone; so are
    threads, which cannot."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not (before is signal.SIG_DFL or ahead_of(before)):
        return
    pid = os.getpid()

    def last() -> None:
        try:
            leave()
        finally:
            os.kill(pid, signal.SIGTERM)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before)  # the second one does it at once
        if os.getpid() != pid:  # a child that inherited this
            os.kill(os.getpid(), number)
            return
        apart(last)

    signal.signal(signal.SIGTERM, on_signal)


def apart(work: Callable[[], object]) -> None:
    """Begin ``work`` in another thread, without waiting until it has begun, as ``Thread.start()`` does: a signal may come
    where nothing may block (under gevent, between two greenlets)."""
    _thread.start_new_thread(work, ())


def leave_first(mesh: Mesh) -> None:
    """The same for an app under any server: for one that leaves SIGTERM to the system (Werkzeug's; Hypercorn's workers, which
    it terminates as soon as one of them has ended), and ahead of uvicorn, which ends the process by the signal it got, after
    which nothing runs. A process that registers nothing is left alone."""
    if mesh.settings.service:
        leave_on_sigterm(mesh.leave, ahead_of=_uvicorns)


def _uvicorns(handler: Any) -> bool:
    return type(getattr(handler, "__self__", None)).__module__.partition(".")[0] == "uvicorn"
