"""On which TCP ports this process really listens, as the system sees it: no server has to be asked, and none can be wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc/self")
_LOOPBACK: Final = ("0100007F", "00000000000000000000000001000000")
_LISTEN: Final = "0A"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens; ``local`` if only this machine reaches it."""

    port: int
    local: bool = False


def listeners(proc: Path = PROC) -> Mapping[int, Listener] | None:
    """The listening TCP sockets that this process has open, by file descriptor. None where /proc does not tell."""
    try:
        known = dict(table(proc))
        opened = {int(link.name): _target(link) for link in (proc / "fd").iterdir()}
    except OSError:
        return None
    return {number: known[inode] for number, inode in opened.items() if inode in known}


def table(proc: Path = PROC) -> Iterator[tuple[str, Listener]]:
    """Every TCP socket of this machine (or container) that listens, as it is called among a process's files."""
    for name in ("tcp", "tcp6"):
        path = proc / "net" / name
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else ():
            _, local, _, state, *rest = line.split()
            if state == _LISTEN:
                host, _, port = local.rpartition(":")
                yield f"socket:[{rest[5]}]", Listener(int(port, 16), host in _LOOPBACK)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed just now
        return ""
