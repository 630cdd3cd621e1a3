"""``local://[path]``: a registry shared by all processes of one user on one machine, with nothing to install or start.

It is a SQLite file in WAL mode, by default ``registry.db`` in the state directory. A lease is counted on the machine's
monotonic clock, so rows written before the last boot have expired. The file is soft state: removed, replaced or damaged it
is made anew, and the next heartbeats fill it again. Not for network file systems, which cannot share memory.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from meshlib.backends.base import Backend, Listing
from meshlib.backends.codec import decode, encode
from meshlib.backends.local_db import Database, Rows, touch
from meshlib.backends.local_kv import LocalKeyValue
from meshlib.errors import InvalidAnswer
from meshlib.files import check_directory
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings

log = logging.getLogger(__name__)

EXAMPLE: Final = "local:///var/lib/mesh/registry.db"

MAX_REPORTED: Final = 1000
"""Instances whose documents are reported as unusable, each once."""

_KEY: Final = "namespace = ? AND service = ? AND id = ?"


def open_backend(settings: Settings) -> Backend:
    """See :func:`meshlib.backends.open_backend`. Raises ValueError for a directory that is not ours alone to write to."""
    if settings.registry.options:
        raise ValueError(f"local:// has no option {next(iter(settings.registry.options))!r}")
    path = locate(settings)
    if path.parent.is_dir():  # what else stands in its place may go again: an unreachable registry, no wrong setting
        check_directory(path.parent)
    database = Database(path)
    return Backend(LocalRegistry(database), LocalKeyValue(database))


def locate(settings: Settings) -> Path:
    """The absolute path of the file that ``settings`` name; for a directory, ``registry.db`` in it."""
    named = settings.registry.path
    path = Path(os.path.abspath(named or settings.state_path / "registry.db"))
    return path / "registry.db" if named.endswith("/") or path.is_dir() else path


class LocalRegistry:
    """:class:`~meshlib.backends.base.Registry` over a :class:`Database`."""

    routes: tuple[tuple[str, int], ...] = ()

    def __init__(self, database: Database) -> None:
        self.database = database
        self._reported: set[str] = set()

    async def register(self, instance: Instance, ttl: float) -> None:
        document, boot = encode(instance), self.database.boot

        def change(writer: sqlite3.Connection, now: float) -> None:
            known = writer.execute(f"SELECT document FROM instances WHERE {_KEY}", _key(instance)).fetchone()
            writer.execute("REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?)", (*_key(instance), document, boot, now + ttl))
            if known != (document,):
                touch(writer)

        await self.database.write(change)

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:
        document = encode(instance)

        def change(writer: sqlite3.Connection, now: float) -> bool:
            prolong = f"UPDATE instances SET expires = ? WHERE {_KEY} AND document = ?"
            return writer.execute(prolong, (now + ttl, *_key(instance), document)).rowcount == 1

        return await self.database.write(change)

    async def deregister(self, instance: Instance) -> None:
        def change(writer: sqlite3.Connection, _: float) -> None:
            if writer.execute(f"DELETE FROM instances WHERE {_KEY}", _key(instance)).rowcount:
                touch(writer)

        await self.database.write(change)

    async def fetch(self, service: ServiceUrl) -> Listing:
        return self._listing(service, await self.database.read(self._query(service)), {})

    async def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        decoded: dict[bytes, Instance] = {}
        async with aclosing(self.database.follow(self._query(service))) as states:
            async for rows in states:
                listing = self._listing(service, rows, decoded)
                decoded = {document: decoded[document] for _, document in rows if document in decoded}
                yield listing

    async def services(self, namespace: str) -> list[str]:
        alive = "SELECT DISTINCT service FROM instances WHERE namespace = ? AND boot = ? AND expires > ? ORDER BY service"
        values = (namespace, self.database.boot, self.database.clock())
        return [name for (name,) in await self.database.read(lambda reader: reader.execute(alive, values).fetchall())]

    async def close(self) -> None:
        await self.database.close()

    def _query(self, service: ServiceUrl) -> Callable[[sqlite3.Connection], Rows]:
        # CAST, because SQLite keeps in any column what another program puts there.
        alive = """SELECT id, CAST(document AS BLOB) FROM instances
                   WHERE namespace = ? AND service = ? AND boot = ? AND expires > ? ORDER BY id"""

        def query(reader: sqlite3.Connection) -> Rows:
            values = (service.namespace, service.service, self.database.boot, self.database.clock())
            return reader.execute(alive, values).fetchall()

        return query

    def _listing(self, service: ServiceUrl, rows: Rows, decoded: dict[bytes, Instance]) -> Listing:
        """The rows as instances, those with a document in ``decoded`` taken from there; adds the others to it."""
        for name, document in rows:
            if document not in decoded:
                try:
                    decoded[document] = decode(document, service)
                except InvalidAnswer as problem:
                    shown = str(name)[:80].encode("unicode_escape").decode("ascii")  # another program may have put it there
                    self._report(f"{service}/{shown}", problem)
        found = [decoded[document] for _, document in rows if document in decoded]
        return Listing.of(found, self.database.revision)

    def _report(self, name: str, problem: InvalidAnswer) -> None:
        if name not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(name)
            log.warning("%s in %s is left out: %s", name, self.database.path, problem)


def _key(instance: Instance) -> tuple[str, str, str]:
    return (instance.namespace, instance.service, instance.id)
