"""Werkzeug's development server: which process serves, on which socket."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from types import FrameType

from meshlib.discovery.listening import Listener, listeners


def listening() -> Iterable[Listener] | None:
    """Where this process listens, for :meth:`meshlib.Mesh.announce`: the socket that Werkzeug says is its server's, or, under
    other servers, all there are. Raises LookupError in the process that only restarts the one that serves."""
    found = listeners()
    if found is None:
        return None
    server = os.environ.get("WERKZEUG_SERVER_FD", "")
    if server.isdigit() and int(server) in found:
        if _restarts_another():
            raise LookupError("this is the reloader")
        return (found[int(server)],)
    return found.values()


def _restarts_another() -> bool:
    """True in the reloader's parent: it listens, and waits in the reloader for the child that serves."""
    if os.environ.get("WERKZEUG_RUN_MAIN") == "true":
        return False
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_globals.get("__name__") == "werkzeug._reloader":
            return True
        frame = frame.f_back
    return False
