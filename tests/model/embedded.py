"""The registries without a server as subjects: memory and the local file."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from meshlib.backends.local import LocalRegistry
from meshlib.backends.local_db import Database
from meshlib.backends.memory import MemoryRegistry, Store
from meshlib.model import Instance, ServiceUrl
from tests.model.ledger import Leases
from tests.model.subjects import Subject, Watched

T = TypeVar("T")

POLL = 0.2
"""Seconds between two looks of the local registry: four times the usual, because a thousand histories have many."""


class Embedded(Subject):
    """Its truth is a naive model of the operations that went well."""

    async def open(self) -> None:
        self.leases = Leases(self.ledger)

    async def register(self, instance: Instance, how: int) -> None:
        self.ledger.register(instance)
        if await self._tried(self._done(self.via(how).register(instance, self.ttl(instance)))):
            self.leases.put(instance, self.ttl(instance))

    async def heartbeat(self, instance: Instance, how: int) -> bool:
        answer = await self._tried(self.via(how).heartbeat(instance, self.ttl(instance)))
        if answer:
            self.leases.put(instance, self.ttl(instance))
        return answer is not False

    async def deregister(self, instance: Instance, how: int) -> None:
        if await self._tried(self._done(self.via(how).deregister(instance))):
            self.leases.remove(instance)

    @staticmethod
    async def _done(work: Any) -> bool:
        await work
        return True


class Memory(Embedded):
    """Down, or not."""

    name = "memory"
    faults = {"down": 3, "up": 3, "wipe": 1}

    async def open(self) -> None:
        await super().open()
        self.store = Store(clock=self.clock)
        self.registry, self.providing = Watched(MemoryRegistry(self.store), self), [MemoryRegistry(self.store)]  # type: ignore[assignment]
        self.since: float | None = None

    async def down(self, who: int, how: int) -> None:
        """It does not answer."""
        self.store.set_down(True)
        self.since = self.since or self.clock()

    async def up(self, who: int, how: int) -> None:
        """It answers."""
        self.store.set_down(False)
        self.since = None

    async def wipe(self, who: int, how: int) -> None:
        """It has lost its state."""
        with self.store.lock:
            self.store.instances.clear()
            self.store.touch()
        self.leases.clear()

    async def mend(self) -> None:
        await self.up(0, 0)

    def lost(self) -> float | None:
        return self.since

    def answered(self) -> float:
        return self.clock() if self.since is None else self.since


class Inline(Database):
    """Without the thread: the same history goes the same way each time."""

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        await asyncio.sleep(0)
        return work(*args)

    async def close(self) -> None:
        handle = self._handle
        await super().close()
        if handle is not None:
            handle.writer.close()


class Local(Embedded):
    """The file removed, damaged, replaced by a directory's absence, locked by another process. The view and the providers
    have connections of their own, as in two processes."""

    name = "local"
    faults = {"remove": 2, "damage": 1, "block": 2, "unblock": 3, "lock": 1, "unlock": 3, "vandal": 1}
    numbers = itertools.count()

    def __init__(self, service: ServiceUrl, clock: Any, rng: random.Random, *, room: Path) -> None:
        super().__init__(service, clock, rng)
        self.room = room / str(next(self.numbers))
        self.path = self.room / "registry" / "registry.db"

    async def open(self) -> None:
        await super().open()
        self.room.mkdir()
        self.databases = [Inline(self.path, clock=self.clock, boot="boot", timeout=0.01, poll=POLL) for _ in range(2)]
        mine, theirs = map(LocalRegistry, self.databases)
        self.registry, self.providing = Watched(mine, self), [theirs]  # type: ignore[assignment]
        self.holder: sqlite3.Connection | None = None
        self.since: float | None = None
        await theirs.services("")  # makes the file

    async def close(self) -> None:
        await self.unlock(0, 0)
        for database in self.databases:
            await database.close()

    @property
    def blocked(self) -> bool:
        return self.path.parent.is_file()

    async def remove(self, who: int, how: int) -> None:
        """Somebody removes the file."""
        if not self.blocked:
            await self.unlock(0, 0)
            self.path.unlink(missing_ok=True)
            self.leases.clear()

    async def damage(self, who: int, how: int) -> None:
        """Somebody puts in its place what is no database."""
        if not self.blocked:
            await self.remove(0, 0)
            for log in self.path.parent.glob("registry.db-*"):  # a database can rise again from its log
                log.unlink()
            other = self.path.with_name("other")
            other.write_bytes((b"no database, whatever its name says" * 100, b"")[how % 2])
            other.chmod(0o600)
            other.rename(self.path)

    async def block(self, who: int, how: int) -> None:
        """The directory is not there, and cannot be made."""
        if not self.blocked and self.path.parent.is_dir():
            await self.unlock(0, 0)
            self.path.parent.rename(self.room / "away")
            self.path.parent.write_text("no directory")
            self.since = self.clock()

    async def unblock(self, who: int, how: int) -> None:
        """The directory is back."""
        if self.blocked:
            self.path.parent.unlink()
            (self.room / "away").rename(self.path.parent)
            self.since = None

    async def lock(self, who: int, how: int) -> None:
        """Another process was stopped in the middle of a write."""
        if self.holder is None and self.path.is_file():
            self.holder = sqlite3.connect(self.path, isolation_level=None, timeout=1)
            try:
                self.holder.execute("BEGIN IMMEDIATE")
            except sqlite3.Error:
                await self.unlock(0, 0)

    async def unlock(self, who: int, how: int) -> None:
        """It goes on."""
        if self.holder is not None:
            self.holder.close()
            self.holder = None

    async def vandal(self, who: int, how: int) -> None:
        """Another program writes what is no instance."""
        document = (b"{", b"\xff", b"[]", b'{"id":"p9","host":"x@evil","port":1}')[how % 4]
        row = (self.service.namespace, self.service.service, "p9", document, "boot", 9e9)
        if self.path.is_file() and self.holder is None:
            with suppress(sqlite3.Error):  # there may be no database at the moment
                with closing(sqlite3.connect(self.path, timeout=1)) as writer, writer:
                    writer.execute("REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?)", row)

    async def mend(self) -> None:
        await self.unlock(0, 0)
        await self.unblock(0, 0)

    def lost(self) -> float | None:
        return self.since

    def answered(self) -> float:
        return self.clock() if self.since is None else self.since
