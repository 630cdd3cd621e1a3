"""Files that only this user may touch (threat 11): the local registry and the disk snapshots live in them.

Everything is checked with the effective user id. Nobody else can swap what is below a directory that passed
:func:`check_directory`, so a check of a file inside it stays true.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meshlib.threads import original


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


def read_private(path: Path, most: int) -> bytes:
    """What is in ``path``, up to ``most`` bytes. Raises ValueError for a file that others may have made or changed, or that is
    too large."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise ValueError(f"{path} is a symbolic link") from problem
        raise
    try:
        check_file(path, os.fstat(handle))
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(handle)
    if len(content) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return content


def replace_private(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step that survives a power cut. Called under a lock, so the name of the temporary
    file can be fixed, and one that a crash left behind goes."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def quarantine(path: Path, *, now: float, most: int) -> str:
    """Put ``path`` aside for somebody to look at, under the name that is returned; of such files in its directory ``most`` are
    kept. ``now`` is the wall-clock time."""
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}.{int(now % 1 * 1e6):06d}"  # the names sort by age
    target = path.with_name(f"{path.name}.quarantined-{stamp}")
    with suppress(OSError):
        path.rename(target)
        kept = sorted(path.parent.glob("*.quarantined-*"), key=lambda each: each.name.rpartition(".quarantined-")[2])
        for old in kept[:-most]:
            old.unlink()
    return target.name


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
            original("time", "sleep")(0.01)  # its thread has a lock: no other greenlet of it may come to want that
        else:
            return True


def unlock_byte(handle: int, byte: int) -> None:
    """Give the record lock on ``byte`` back; fine when there is none."""
    fcntl.lockf(handle, fcntl.LOCK_UN, 1, byte)
