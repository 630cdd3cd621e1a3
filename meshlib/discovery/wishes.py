"""What an operator asks of instances that other processes serve: that they drain, pause, or are ready again.

The status of an instance is what its processes say, again and again: whatever another one writes into the registry, they
put right with their next heartbeat. So they are told, by the file that siblings share: every one of them reads it several
times in a heartbeat, and lists what it says. That takes the same machine, user and state directory. From elsewhere there is
what the registry itself knows: Consul's maintenance mode, which consumers heed, and which its agent keeps until it is told
otherwise. Draining is known to nobody but the processes.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from meshlib.discovery.siblings import MEMBERS, REGISTRAR, Record, changed, content_of, file_of, joined, place
from meshlib.files import check_directory, check_file
from meshlib.model import Instance, Status
from meshlib.settings import Settings


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of this machine and user that serve one instance, as their file ``path`` tells. ``registrar`` is the
    process that keeps the entry, 0 when there is none at the moment; ``alive`` whether anybody serves; ``record`` what they
    share."""

    path: Path
    record: Record
    registrar: int
    alive: bool

    def serves(self, instance: Instance) -> bool:
        """Whether it is ``instance`` that they serve."""
        named = self.path.name.startswith(f"{instance.service}-{instance.port}-")
        return self.alive and named and self.record.id == instance.id


def groups(settings: Settings) -> list[Group]:
    """All groups of this state directory. What is not to be trusted is left out."""
    found = []
    for path in sorted(place(settings).glob("*")):
        with suppress(OSError, ValueError):
            found.append(_group(path))
    return found


def group_of(settings: Settings, instance: Instance) -> Group | None:
    """Those who serve ``instance`` here; None when there are none, or not with this state directory. Their registry may be
    written in another way than ours, as long as there is no doubt."""
    alike = [group for group in groups(settings) if group.serves(instance)]
    exact = [group for group in alike if group.path == file_of(settings, instance)]
    return next(iter(exact or alike)) if exact or len(alike) == 1 else None


def tell(group: Group, status: Status) -> None:
    """Have all of ``group`` listed with ``status``; it takes up to a heartbeat of theirs. Raises OSError and ValueError for a
    file that is not to be trusted, and TimeoutError when they cannot be told."""
    own = joined(group.path)
    if own is not None:
        own.wish(status)
        return
    with _opened(group.path) as handle:
        changed(handle, group.path, status=status)


def _group(path: Path) -> Group:
    own = joined(path)
    if own is not None:
        return Group(path, own.record, os.getpid(), alive=True)
    with _opened(path) as handle:
        return Group(path, content_of(handle, path), holder(handle, REGISTRAR), holder(handle, MEMBERS) != 0)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file, without becoming a member: who closes it loses all locks that the process has on it."""
    for level in (path.parent.parent, path.parent):
        check_directory(level)
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        check_file(path, os.fstat(handle))
        yield handle
    finally:
        os.close(handle)


# struct flock is declared in another order on the BSDs, macOS among them.
_LINUX = sys.platform.startswith("linux")
_FLOCK = "hhqqi4x" if _LINUX else "qqihh"


def holder(handle: int, byte: int) -> int:
    """The process that has a lock on ``byte`` of an open file (one of them), 0 for none. Nothing is locked, not even for a
    moment: who comes then is not to take us for one of them."""
    kind = fcntl.F_WRLCK
    asked = (kind, os.SEEK_SET, byte, 1, 0) if _LINUX else (byte, 1, 0, kind, os.SEEK_SET)
    answer = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(_FLOCK, *asked)))
    kind, pid = (answer[0], answer[4]) if _LINUX else (answer[3], answer[2])
    return 0 if kind == fcntl.F_UNLCK else pid or -1  # a process of another machine, or namespace, has no number here
