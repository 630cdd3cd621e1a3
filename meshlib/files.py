"""Files that only this user may touch (threat 11): the local registry and the disk snapshots live in them.

Everything is checked with the effective user id. Nobody else can swap what is below a directory that passed
:func:`check_directory`, so a check of a file inside it stays true.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make ``path`` and its missing parents with mode 0700, then :func:`check_directory` it."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        with suppress(FileExistsError):
            missing.mkdir(mode=0o700)
    check_directory(path)


def check_directory(path: Path) -> None:
    """Raise ValueError, saying what is wrong, unless ``path`` is a directory of ours that nobody else can write to (or a
    link to one that we or root made); OSError when it cannot be looked at."""
    link, target = path.lstat(), path.stat()
    if not stat.S_ISDIR(target.st_mode):
        raise ValueError(f"{path} is not a directory")
    if link.st_uid not in (os.geteuid(), 0):
        raise ValueError(f"{path} is a link made by another user ({link.st_uid})")
    if target.st_uid != os.geteuid():
        raise ValueError(f"the directory {path} belongs to user {target.st_uid}, not to us ({os.geteuid()})")
    if target.st_mode & 0o022:
        raise ValueError(f"the directory {path} can be written to by others (repair: chmod go-w {path})")


def check_file(path: object, status: os.stat_result) -> None:
    """Raise ValueError unless ``status`` (of ``lstat`` or ``fstat``) is that of a plain file that only we can use."""
    if stat.S_ISLNK(status.st_mode):
        raise ValueError(f"{path} is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a plain file")
    if status.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to user {status.st_uid}, not to us ({os.geteuid()})")
    if status.st_mode & 0o077:
        raise ValueError(f"{path} can be used by others (repair: chmod 600 {path})")


@contextmanager
def locked(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the lock file ``path`` against all processes and threads. Raises TimeoutError after ``timeout`` seconds, so that
    a stopped holder wedges nobody."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        give_up = time.monotonic() + timeout
        while not _take(handle):
            if time.monotonic() > give_up:
                raise TimeoutError(f"another process has held {path} for {timeout:g} s")
            time.sleep(0.01)
        try:
            yield
        finally:
            # Closing is not enough: a process forked meanwhile has a copy, which would keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_byte(handle: int, byte: int, *, shared: bool = False, timeout: float = 0.0) -> bool:
    """Take the record lock on ``byte`` of an open file against other processes (not against others of this one), or change
    the one we have, in one step; False when it is not to be had within ``timeout`` seconds."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    give_up = time.monotonic() + timeout
    while True:
        try:
            fcntl.lockf(handle, kind | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.01)
        else:
            return True


def unlock_byte(handle: int, byte: int) -> None:
    """Give the record lock on ``byte`` back; fine when there is none."""
    fcntl.lockf(handle, fcntl.LOCK_UN, 1, byte)
