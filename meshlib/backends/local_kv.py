"""Keys, values and locks in the file of the local registry."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from itertools import takewhile

from meshlib.backends.base import Entry
from meshlib.backends.local_db import Database, Rows, touch
from meshlib.errors import CasConflict


class LocalKeyValue:
    """:class:`~meshlib.backends.base.KeyValue` over a :class:`Database`. Revisions and fences come from one counter of the
    file, and each write is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def get(self, key: str) -> Entry | None:
        one = "SELECT key, value, revision FROM entries WHERE key = ?"
        row = await self.database.read(lambda reader: reader.execute(one, (key,)).fetchone())
        return Entry(*row) if row else None

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        return _entries(await self.database.read(_query(prefix)))

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> None:
        def change(writer: sqlite3.Connection, _: float) -> None:
            _expect(writer, key, expected)
            writer.execute("REPLACE INTO entries VALUES (?, ?, ?)", (key, value, touch(writer)))

        await self.database.write(change)

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        def change(writer: sqlite3.Connection, _: float) -> None:
            _expect(writer, key, expected)
            if writer.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount:
                touch(writer)

        await self.database.write(change)

    async def watch(self, prefix: str) -> AsyncIterator[tuple[Entry, ...]]:
        async with aclosing(self.database.follow(_query(prefix))) as states:
            async for rows in states:
                yield _entries(rows)

    async def lock(self, key: str, *, ttl: float) -> LocalLock | None:
        def change(writer: sqlite3.Connection, now: float) -> int:
            if writer.execute("SELECT 1 FROM locks WHERE key = ?", (key,)).fetchone():
                return 0
            fence = touch(writer)
            writer.execute("INSERT INTO locks VALUES (?, ?, ?, ?)", (key, fence, self.database.boot, now + ttl))
            return fence

        fence = await self.database.write(change)
        return LocalLock(self.database, key, fence, ttl) if fence else None


class LocalLock:
    """:class:`~meshlib.backends.base.Lock` in a :class:`Database`."""

    def __init__(self, database: Database, key: str, fence: int, ttl: float) -> None:
        self.database, self.key, self.fence, self.ttl = database, key, fence, ttl

    async def renew(self) -> bool:
        def change(writer: sqlite3.Connection, now: float) -> bool:
            prolong = "UPDATE locks SET expires = ? WHERE key = ? AND fence = ?"
            return writer.execute(prolong, (now + self.ttl, self.key, self.fence)).rowcount == 1

        return await self.database.write(change)

    async def release(self) -> None:
        def change(writer: sqlite3.Connection, _: float) -> None:
            writer.execute("DELETE FROM locks WHERE key = ? AND fence = ?", (self.key, self.fence))

        await self.database.write(change)


def _query(prefix: str) -> Callable[[sqlite3.Connection], Rows]:
    def query(reader: sqlite3.Connection) -> Rows:
        ordered = "SELECT key, value, revision FROM entries WHERE key >= ? ORDER BY key"
        with closing(reader.execute(ordered, (prefix,))) as rows:
            return list(takewhile(lambda row: row[0].startswith(prefix), rows))

    return query


def _entries(rows: Rows) -> tuple[Entry, ...]:
    return tuple(Entry(*row) for row in rows)


def _expect(writer: sqlite3.Connection, key: str, expected: int | None) -> None:
    if expected is None:
        return
    known = writer.execute("SELECT revision FROM entries WHERE key = ?", (key,)).fetchone()
    if (known[0] if known else 0) != expected:
        raise CasConflict(f"{key} has another revision than {expected}")
