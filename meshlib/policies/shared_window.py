"""One window for all processes of a host: the times lie in a file that all of them map, in the state directory.

A record lock on the file is held for microseconds, with nobody else's code inside; the system frees it when its holder dies,
and a child process does not inherit it. ``CLOCK_MONOTONIC`` is one clock for all processes of a host, until it restarts.

The file consists of cells of 8 bytes: a header of :data:`HEADER`, then an entry per key: the key's digest, the time of its
newest event, and for each rate a cursor and ``count`` times.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Self

from meshlib.errors import ConfigError
from meshlib.files import check_file, make_directory
from meshlib.policies.forks import on_fork
from meshlib.policies.gate import Stuck
from meshlib.policies.rates import Rate
from meshlib.policies.window import NEVER, Slots
from meshlib.threads import original, rlock

LAYOUT: Final = int.from_bytes(b"meshlim1", sys.byteorder)
"""What a file begins with; another layout gets another number."""

HEADER: Final = 4
WAYS: Final = 8
"""Entries that one key may have to choose from."""

MOST_BYTES: Final = 64 * 1024 * 1024

PATIENCE: Final = 0.2
ATTEMPTS: Final = 200
"""Seconds to wait for the lock, and how often to try at least: where a machine is so busy that we hardly ever come to try,
the holder may not come to go on. Only one that was stopped keeps it longer; waiting may hold up an event loop."""

CHECK: Final = 1.0
"""Seconds after which to look whether the file is still there, and whether a stopped holder goes on."""

FORGOTTEN: Final = 7 * 86_400.0
"""Seconds after which a file that nobody wrote to is removed."""


def digest(key: Any) -> int:
    """The same whole number from 1 to 2**63 - 1 in every process, for equal keys."""
    text = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8, person=type(key).__name__.encode()[:16]).digest(), "big") >> 1 | 1


def entry_cells(rates: tuple[Rate, ...]) -> int:
    """Cells of 8 bytes that one key needs."""
    return 2 + sum(1 + rate.count for rate in rates)


class SharedLog:
    """The file, and its lock: a context manager, in which alone its cells are used. Entering it raises :class:`Stuck` after
    :data:`PATIENCE`, and :class:`~meshlib.errors.ConfigError` the first time, if there can be no such file."""

    def __init__(self, path: Path, rates: tuple[Rate, ...], keys: int, clock: Callable[[], float]) -> None:
        self.path, self.rates, self.keys, self.clock = path, rates, keys, clock
        self.stride = entry_cells(rates)
        self._handle, self._depth = -1, 0
        self._check_at = self._stuck_until = 0.0
        self._threads = rlock()
        self.numbers: memoryview[int] = memoryview(b"").cast("q")
        self.times: memoryview[float] = memoryview(b"").cast("d")
        on_fork(self)

    def acquire(self) -> Self:
        """See :class:`SharedLog`."""
        self._threads.acquire()  # record locks are the process's: its threads have this one
        try:
            if not self._depth:
                self._enter()
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise
        return self

    def release(self) -> None:
        """The end of what :meth:`acquire` began."""
        self._depth -= 1
        if not self._depth:
            fcntl.lockf(self._handle, fcntl.LOCK_UN)
        self._threads.release()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    def forked(self) -> None:
        """In a child process: a thread of the parent may have been inside. The lock on the file was the parent's alone."""
        self._threads, self._depth = rlock(), 0

    def _enter(self) -> None:
        if self._handle < 0:
            self._open_first()
        else:
            self._lock(self._handle)
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK
            if not os.fstat(self._handle).st_nlink:
                self._reopen()

    def _open_first(self) -> None:
        try:
            self._open()
        except (OSError, ValueError) as problem:
            example = "a directory on a local disk, of mode 0700"
            raise ConfigError("MESH_STATE_DIR", f"cannot hold a limit: {problem}", example=example) from problem

    def _reopen(self) -> None:
        """The file was removed: whoever opens it now opens another one."""
        old = self._handle
        with suppress(OSError, ValueError):  # then the old one must do: the others have it, too
            self._open()
            os.close(old)

    def _lock(self, handle: int) -> None:
        start, pause, attempts = time.monotonic(), 0.0, 0
        while not _take(handle):
            now, attempts = time.monotonic(), attempts + 1
            if now - start > PATIENCE and attempts > ATTEMPTS:
                self._stuck_until = now + CHECK
            if now < self._stuck_until:  # who found that out has waited for all of us
                raise Stuck(f"another process holds {self.path} and does not go on")
            original("time", "sleep")(pause)  # no other greenlet may come in, as its thread has the lock already
            pause = min(1e-4, pause + 2e-5)  # who has it has it for microseconds, but there may be many others

    def _open(self) -> None:
        """Open it, and hold its lock."""
        make_directory(self.path.parent)
        _sweep(self.path.parent)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            check_file(self.path, os.fstat(handle))
            self._lock(handle)
            size = 8 * (HEADER + self.keys * self.stride)
            _allocate(handle, size)
            cells = memoryview(mmap.mmap(handle, size))
            self.numbers, self.times = cells.cast("q"), cells.cast("d")
            self._check_header(cells)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _check_header(self, cells: memoryview) -> None:
        """A file that is new, damaged, of another layout or from before the host's last start is begun anew."""
        wanted = (LAYOUT, digest(f"{self.rates} {self.keys}"), _boot(), self.stride)
        if tuple(self.numbers[:HEADER]) != wanted:
            cells[:] = bytes(len(cells))
            for place, value in reversed(list(enumerate(wanted))):  # who dies in between leaves it for the next one
                self.numbers[place] = value

    def entry(self, key: int) -> int:
        """The first cell of the entry for the digest ``key``. One that nobody used for a window is given to a new key; where
        there is none, keys share, so that none gets more than it may."""
        if self.keys == 1:
            return HEADER
        sets = max(1, self.keys // WAYS)
        first = key % sets * min(WAYS, self.keys)
        ways = [HEADER + (first + way) * self.stride for way in range(min(WAYS, self.keys))]
        for cell in ways:
            if self.numbers[cell] == key:
                return cell
        now, longest = self.clock(), self.rates[-1].seconds
        for cell in ways:
            if not self.numbers[cell] or not 0 <= now - self.times[cell + 1] < longest:
                self.numbers[cell] = key
                return cell
        return ways[key // sets % len(ways)]


class SharedRing(Slots):
    """The slots of one rate (the ``place``-th) for one key, in the file. A slot of time 0.0 was never used, and a time in the
    future is damage: it counts as none."""

    def __init__(self, log: SharedLog, place: int, key: int) -> None:
        self._log, self._key = log, key
        self.rate = log.rates[place]
        self._offset = 2 + sum(1 + rate.count for rate in log.rates[:place])

    def _then(self, place: int) -> float:
        cursor = self._log.entry(self._key) + self._offset
        return self._log.times[cursor + 1 + (self._at(cursor) + place) % self.rate.count] or NEVER

    def _at(self, cursor: int) -> int:
        return self._log.numbers[cursor] % self.rate.count  # whatever is there: a place among the slots

    def free_in(self, now: float, ahead: int = 0) -> float:
        rounds, place = divmod(ahead, self.rate.count)
        wait = self._rest(now, 0)
        if place:
            wait = max(wait, self._rest(now, place))
        return wait + rounds * self.rate.seconds

    def _rest(self, now: float, place: int) -> float:
        age = now - self._then(place)
        return self.rate.seconds - age if 0 <= age < self.rate.seconds else 0.0

    def add(self, now: float) -> None:
        # In this order: whoever is killed in between has skipped a slot, and neither blocked one nor had one forgotten.
        entry = self._log.entry(self._key)
        cursor = entry + self._offset
        at = self._at(cursor)
        self._log.times[entry + 1] = now
        self._log.numbers[cursor] = (at + 1) % self.rate.count
        self._log.times[cursor + 1 + at] = now

    @property
    def newest(self) -> float:  # type: ignore[override]
        return self._log.times[self._log.entry(self._key) + 1]


_logs: dict[Path, SharedLog] = {}


def shared_log(path: Path, rates: tuple[Rate, ...], keys: int, clock: Callable[[], float]) -> SharedLog:
    """The log at ``path``: one per process and never closed, for to close any handle of a file frees the process's locks on
    it."""
    return _logs.get(path) or _logs.setdefault(path, SharedLog(path, rates, keys, clock))


def _take(handle: int) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


def _allocate(handle: int, size: int) -> None:
    """Real room for ``size`` bytes: a full disk must be an error here, and not a signal that kills us later."""
    if os.fstat(handle).st_size >= size:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def _boot() -> int:
    """Which start of the host this is, where that is told: its clock begins anew."""
    with suppress(OSError):
        return digest(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    return 1


def _sweep(directory: Path) -> None:
    for path in _old(directory):
        with suppress(OSError):
            path.unlink()


def _old(directory: Path) -> Iterator[Path]:
    limit = time.time() - FORGOTTEN
    for path in directory.glob("*.limit"):
        with suppress(OSError):
            if path.lstat().st_mtime < limit:
                yield path
