"""Whether the last process that serves a port is about to be replaced."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from meshlib.discovery.listening import table


def successor_expected(port: int) -> bool:
    """True when our parent will start another process in our place, so that the entry is to stay listed: connections wait
    in the backlog meanwhile.

    That is a gunicorn master that still holds the socket that listens at ``port``: at its own end it closes its listeners
    before it stops its workers. Others, as uvicorn's, hold theirs until the last worker is gone, which says nothing. Where
    /proc does not tell (another system, a master of another user), the answer is no.
    """
    if "gunicorn.arbiter" not in sys.modules or not port:
        return False
    parent = Path(f"/proc/{os.getppid()}/fd")
    try:
        listening = {inode for inode, listener in table() if listener.port == port}
        return bool(listening) and any(_target(link) in listening for link in parent.iterdir())
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # closed just now
        return ""
