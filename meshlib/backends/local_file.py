"""The file of the local registry: made, checked, quarantined and opened, all under one lock file.

What SQLite must be protected from, and is here: a database created by two processes at once, a ``-wal`` or ``-shm`` left
over from a deleted database, our own ``close()`` of the file (which would drop the POSIX locks of every connection of this
process: so the file is looked at with ``lstat`` and never opened but by SQLite), and forks (``local_fork.py``).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from meshlib.backends.local_fork import Connection
from meshlib.files import check_file, locked, make_directory

log = logging.getLogger(__name__)

APPLICATION = 0x4D455348
SCHEMA_VERSION = 1
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE meta (revision INTEGER NOT NULL);
CREATE TABLE instances (
    namespace TEXT NOT NULL, service TEXT NOT NULL, id TEXT NOT NULL, document BLOB NOT NULL,
    boot TEXT NOT NULL, expires REAL NOT NULL, PRIMARY KEY (namespace, service, id)
) WITHOUT ROWID;
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL);
CREATE TABLE locks (key TEXT PRIMARY KEY, fence INTEGER NOT NULL, boot TEXT NOT NULL, expires REAL NOT NULL);
INSERT INTO meta VALUES ({{revision}});
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

READ_TIMEOUT = 0.2
"""Seconds a read, which runs on the event loop, waits for a lock. Readers meet one only while a crashed writer's log is
being recovered."""


class Unusable(Exception):
    """The file is damaged or of another version of meshlib: it goes to quarantine."""


@dataclass(slots=True)
class Handle:
    """An open database. ``reader`` is used by the event loop only, ``writer`` by the writing thread only; two connections
    also because ``PRAGMA data_version`` counts the commits of *other* connections. ``sound`` turns false for good when a
    statement failed in a way that opening anew may cure. The rest is what the last look for changes saw: it belongs to the
    connection, as each counts its data versions from 1."""

    reader: Connection
    writer: Connection
    identity: tuple[int, int]
    sound: bool = True
    data_version: int = 0
    revision: int = 0
    next_expiry: float = 0.0


def identity(path: Path) -> tuple[int, int] | None:
    """What tells the file at ``path`` from one that replaced it; None when there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def open_file(path: Path, *, timeout: float) -> Handle:
    """Open ``path``, made anew when it is missing or unusable. Raises sqlite3.Error, OSError, and ValueError for a file or
    directory that others can tamper with or that belongs to another program."""
    make_directory(path.parent)
    with locked(path.with_name(path.name + ".lock"), timeout=timeout):
        _create(path)
        try:
            return _open(path, timeout)
        except Unusable as problem:
            _quarantine(path, str(problem))
            _create(path)
            return _open(path, timeout)


def _companions(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]


def _create(path: Path) -> None:
    """Make an empty file, which SQLite takes for an empty database, unless there is a file."""
    if not os.path.lexists(path):
        for stale in _companions(path):  # processes that still have the deleted database open share these
            stale.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    check_file(path, path.lstat())


def _quarantine(path: Path, problem: str) -> None:
    target = f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 1_000_000:06d}"
    for each in _companions(path):  # before the file itself, or a crash here would leave them to the next one
        if each.exists():
            each.rename(path.with_name(target + each.name.removeprefix(path.name)))
    path.rename(path.with_name(target))
    log.warning(
        "the local registry %s cannot be used (%s) and was replaced by an empty one; instances register again by themselves, "
        "keys and values are gone from it, and kept in %s", path, problem, path.with_name(target),
    )  # fmt: skip


def _open(path: Path, timeout: float) -> Handle:
    known = identity(path)
    if known is None:
        raise FileNotFoundError(f"{path} vanished")
    with ExitStack() as opened:
        try:
            writer = opened.enter_context(closing(_connect(path, timeout)))
            _prepare(path, writer)
            reader = opened.enter_context(closing(_connect(path, READ_TIMEOUT)))
            reader.execute("PRAGMA query_only = 1")
            reader.execute("SELECT revision FROM meta").fetchall()
        except sqlite3.DatabaseError as problem:
            if damaged(problem):
                raise Unusable(str(problem)) from problem
            raise
        opened.pop_all()
    return Handle(reader, writer, known)


def damaged(problem: sqlite3.Error) -> bool:
    """True when SQLite says that the file is no intact database."""
    return getattr(problem, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _connect(path: Path, timeout: float) -> Connection:
    # mode=rw: a file that vanishes now is not made again by SQLite, with whatever mode the umask gives.
    uri = f"file:{quote(str(path))}?mode=rw"
    connection = sqlite3.connect(
        uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False, factory=Connection
    )
    connection.text_factory = _text
    return connection


def _text(content: bytes) -> str:
    # SQLite's own would fail the whole answer for one row that another program wrote.
    return content.decode("utf-8", "replace")


def _prepare(path: Path, writer: sqlite3.Connection) -> None:
    application, version = _pragma(writer, "application_id"), _pragma(writer, "user_version")
    empty = not writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and not (empty and not application and not version):
        raise ValueError(f"{path} is a database of another program")
    if not empty and version != SCHEMA_VERSION:
        raise Unusable(f"its schema is version {version}, and this meshlib reads {SCHEMA_VERSION}")
    if (found := _pragma(writer, "quick_check(1)")) != "ok":
        raise Unusable(str(found))
    if _pragma(writer, "journal_mode = WAL") != "wal":
        raise ValueError(f"the file system of {path} cannot share memory, which several processes need")
    # No fsync for each commit: a power cut may cost the last writes, never the file.
    writer.execute("PRAGMA synchronous = NORMAL")
    if empty:
        # A new file counts on from the clock, so that the fences and revisions of a lost one do not come again.
        writer.executescript(SCHEMA.format(revision=time.time_ns() // 1_000_000))


def _pragma(connection: sqlite3.Connection, text: str) -> object:
    return connection.execute(f"PRAGMA {text}").fetchone()[0]
