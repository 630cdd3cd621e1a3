"""Reads, writes and change detection over the file of the local registry, for one process and one event loop.

Reads run on the event loop: in WAL mode they wait for no writer. Writes run in a thread, because they wait for the write
lock; each waits :data:`TIMEOUT` seconds at most, counted from when it was asked for. Every failure is a
:class:`~meshlib.errors.RegistryUnavailable` that names the file.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from meshlib.backends.base import CONFIRM
from meshlib.backends.local_file import Handle, identity, open_file
from meshlib.backends.local_fork import gate
from meshlib.errors import RegistryUnavailable
from meshlib.threads import DaemonExecutor

T = TypeVar("T")
Rows = list[tuple[Any, ...]]

TIMEOUT: Final = 2.0
"""Seconds a write waits for the write lock before it fails."""

POLL: Final = 0.05
"""Seconds between two looks for changes of other processes. A look costs 4 µs, being woken for it 130 µs: 0.4 % of a core."""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def boot_id() -> str:
    """What tells this boot of the machine from others: the monotonic clock starts again with each."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class _Closed(Exception):
    """The connection was closed for a fork, since it was looked at."""


class Database:
    """The file at ``path``. ``clock`` gives the machine-wide monotonic seconds that leases are counted in."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        boot: str | None = None,
        timeout: float = TIMEOUT,
        poll: float = POLL,
    ) -> None:
        self.path, self.clock, self.timeout, self.poll = path, clock, timeout, poll
        self.boot = boot_id() if boot is None else boot
        self.revision = 0
        """The file's revision after the last read."""
        self._pid = 0
        self._closed = False
        self._handle: Handle | None = None
        self._thread: DaemonExecutor | None = None
        self._watchers: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None

    # -- reading and writing

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``query`` on the reading connection. It must fetch all it wants: no open cursor may outlive it."""
        while True:
            handle = await self._opened()
            with gate.passed():
                if handle.reader.closed:  # for a fork, just now
                    continue
                with self._translated(handle):
                    result = query(handle.reader)
                    (self.revision,) = handle.reader.execute("SELECT revision FROM meta").fetchone()
                return result

    async def write(self, change: Callable[[sqlite3.Connection, float], T]) -> T:
        """Run ``change(connection, now)`` in one transaction of the writing connection, in the thread: all of it or
        nothing. What expired has been removed before. Cancelling the caller does not undo it."""
        deadline = time.monotonic() + self.timeout
        while True:
            handle = await self._opened()
            with suppress(_Closed):
                return await self._in_thread(self._transact, handle, change, deadline)

    def _transact(self, handle: Handle, change: Callable[[sqlite3.Connection, float], T], deadline: float) -> T:
        with gate.passed():
            if handle.writer.closed:
                raise _Closed
            return self._transaction(handle, change, deadline)

    def _transaction(self, handle: Handle, change: Callable[[sqlite3.Connection, float], T], deadline: float) -> T:
        with self._translated(handle):
            left = max(0.01, deadline - time.monotonic())  # what queued behind a write that waited in vain still gets a try
            handle.writer.execute(f"PRAGMA busy_timeout = {int(left * 1000)}")
            handle.writer.execute("BEGIN IMMEDIATE")
            try:
                now = self.clock()
                self._purge(handle.writer, now)
                result = change(handle.writer, now)
                handle.writer.execute("COMMIT")
            finally:
                if handle.writer.in_transaction:
                    handle.writer.execute("ROLLBACK")
        if identity(self.path) != handle.identity:
            raise RegistryUnavailable(f"{self.path} was removed while it was written to")
        return result

    def _purge(self, writer: sqlite3.Connection, now: float) -> None:
        if writer.execute("DELETE FROM instances WHERE boot <> ? OR expires <= ?", (self.boot, now)).rowcount:
            touch(writer)
        writer.execute("DELETE FROM locks WHERE boot <> ? OR expires <= ?", (self.boot, now))

    # -- opening

    async def _opened(self) -> Handle:
        self._pid = self._pid or os.getpid()
        if self._closed:
            raise RegistryUnavailable(f"{self.path} is closed")
        if self._pid != os.getpid():
            raise RegistryUnavailable(f"{self.path} was opened by process {self._pid}: open a backend of its own after a fork")
        if (handle := self._usable()) is not None:
            return handle
        return await self._in_thread(self._open, self._drop())

    def _usable(self) -> Handle | None:
        handle = self._handle
        usable = handle and handle.sound and not handle.reader.closed and identity(self.path) == handle.identity
        return handle if usable else None

    def _drop(self) -> Handle | None:
        """Give up the connections; the caller has the thread close the writing one."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.reader.close()
        return handle

    def _open(self, stale: Handle | None) -> Handle:
        """In the thread. The result is kept here, not by the caller, who may have been cancelled."""
        if stale is not None:
            stale.writer.close()
        handle = self._usable()
        if handle is None:
            with gate.passed(), self._translated(None):
                handle = self._handle = open_file(self.path, timeout=self.timeout)
        return handle

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        if self._thread is None:
            self._thread = DaemonExecutor(1, "mesh-local")  # works while the interpreter exits, too
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    @contextmanager
    def _translated(self, handle: Handle | None) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as problem:
            busy = getattr(problem, "sqlite_errorcode", 0) & 0xFF in _BUSY
            if handle is not None and not busy:
                handle.sound = False
            hint = f": another process has held it for {self.timeout:g} s" if busy else ""
            raise RegistryUnavailable(f"the local registry {self.path}: {problem}{hint}") from problem

    async def close(self) -> None:
        """Close the connections; watches end with :class:`~meshlib.errors.RegistryUnavailable`."""
        if self._closed or self._pid not in (0, os.getpid()):
            return
        self._closed = True
        self._wake()
        handle = self._drop()
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._release, handle)
            self._thread.shutdown(wait=False)

    def _release(self, handle: Handle | None) -> None:
        if handle is not None:
            handle.writer.close()
        if (late := self._drop()) is not None:  # opened while we closed
            late.writer.close()

    # -- watching

    async def follow(self, query: Callable[[sqlite3.Connection], Rows]) -> AsyncGenerator[Rows, None]:
        """What ``query`` answers now, then whenever that changed, and unchanged within :data:`CONFIRM` seconds."""
        loop, known = asyncio.get_running_loop(), None
        with self._watching() as news:
            due = loop.time()
            while True:
                news.clear()
                rows = await self.read(query)
                if rows != known or loop.time() >= due:
                    known, due = rows, loop.time() + 0.9 * CONFIRM
                    yield rows
                await _woken(news, due)

    @contextmanager
    def _watching(self) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        self._watchers.add(news)
        if self._timer is None:
            self._tick()
        try:
            yield news
        finally:
            self._watchers.discard(news)
            if not self._watchers and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _tick(self) -> None:
        """One look for all watches. It never fails: what is wrong, those whom it wakes find out."""
        self._timer = asyncio.get_running_loop().call_later(self.poll, self._tick)
        if self._moved():
            self._wake()

    def _wake(self) -> None:
        for news in self._watchers:
            news.set()

    def _moved(self) -> bool:
        """True when a listing may have changed: another file, another revision, or a lease that ended. A heartbeat moves
        the data version only."""
        with gate.passed():
            handle = None if self._closed else self._usable()
            return handle is None or self._differs(handle)

    def _differs(self, handle: Handle) -> bool:
        try:
            (version,) = handle.reader.execute("PRAGMA data_version").fetchone()
            expired = self.clock() >= handle.next_expiry
            if version == handle.data_version and not expired:
                return False
            revision, expiry = handle.reader.execute(_STATE, (self.boot, self.clock())).fetchone()
        except sqlite3.Error:
            return True
        moved = expired or revision != handle.revision
        handle.data_version, handle.revision, handle.next_expiry = version, revision, expiry
        return moved


_STATE = """SELECT revision, (SELECT ifnull(min(expires), 9e99) FROM instances WHERE boot = ? AND expires > ?) FROM meta"""


async def _woken(news: asyncio.Event, deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await news.wait()
    except TimeoutError:
        pass


def touch(writer: sqlite3.Connection) -> int:
    """Count a change, so that watches look again; returns the new revision."""
    writer.execute("UPDATE meta SET revision = revision + 1")
    revision: int = writer.execute("SELECT revision FROM meta").fetchone()[0]
    return revision
