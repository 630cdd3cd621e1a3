"""SQLite and ``fork``: no connection may be open, and none in use, while a process forks.

A child inherits SQLite's notes on which locks the process has on a file, but not the locks, which are POSIX record locks.
What it opens then goes without: the next process that comes takes the shared memory for its own, truncates it, and the child
dies of SIGBUS. Or it waits for ever for a lock that a thread of its parent had. So connections are closed before a fork, and
opened again by whoever needs them next, on both sides.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from meshlib.threads import original

PATIENCE: Final = 3.0
"""Seconds a fork waits for those who use a connection: longer than a write waits for its lock."""


class Connection(sqlite3.Connection):
    """One that says whether it is ``closed``, and that is closed before a fork."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.closed = False
        _mind_forks()
        _alive.add(self)

    def close(self) -> None:
        self.closed = True
        super().close()


_alive: weakref.WeakSet[Connection] = weakref.WeakSet()


class Gate:
    """Lets through whoever is about to use a connection, unless the process is forking."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """In a child process: whoever was inside is there no more."""
        self._lock = original("_thread", "allocate_lock")()
        self._users = self._forks = 0

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Inside, no fork happens. Whoever comes in has to see first whether its connection was closed meanwhile."""
        while not self._enter():
            _pause()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1

    def _enter(self) -> bool:
        with self._lock:
            if not self._forks:
                self._users += 1
            return not self._forks

    def shut(self) -> bool:
        """Let nobody in any more; True once nobody is inside, False when somebody stays for longer than one should."""
        with self._lock:
            self._forks += 1
        give_up = time.monotonic() + PATIENCE
        while self._users:
            if time.monotonic() > give_up:
                return False
            _pause()
        return True

    def open(self) -> None:
        """The fork is over."""
        with self._lock:
            self._forks -= 1


def _pause() -> None:
    original("time", "sleep")(0.001)


gate = Gate()


@cache
def _mind_forks() -> None:
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def _before() -> None:
    if gate.shut():
        for connection in list(_alive):
            connection.close()


def _in_parent() -> None:
    gate.open()


def _in_child() -> None:
    """What could not be closed is the parent's. Even closing it here could meet a mutex that a thread of the parent held at
    the fork, so it lives until the child ends."""
    gate.reset()
    left = [connection for connection in list(_alive) if not connection.closed]
    if left:
        import ctypes  # noqa: PLC0415 - next to never

        for connection in left:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
