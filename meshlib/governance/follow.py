"""Following: one follower per document in use, on the control plane's loop. It watches the store, offers what it finds to the
book, and keeps what holds on disk."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from meshlib.backends.base import Entry, KeyValue
from meshlib.discovery.follow import BACKOFF_CAP, backoff
from meshlib.errors import ConfigError, MeshError, RegistryDenied, RegistryError, RegistryUnavailable, StoreError
from meshlib.governance.book import DISK, KV, Book
from meshlib.governance.document import encoded, read
from meshlib.governance.layout import key_of, prefix_of
from meshlib.governance.store import PolicyStore

log = logging.getLogger(__name__)

SAVE_EVERY: Final = 300.0
"""Seconds after which a document that goes on holding is written again, for its age to be true."""
DENIED: Final = 30.0
"""Most seconds before the next attempt where our token may not read documents: few registries were set up for them."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Around:
    """What a follower works with. ``kv`` gives the store, None where the registry has none; ``clock`` is monotonic, ``wall``
    seconds since the epoch."""

    kv: Callable[[], Awaitable[KeyValue | None]]
    store: PolicyStore
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    uniform: Callable[[], float] = random.random


class DocumentFollower:
    """Follows the document of one service until it is cancelled."""

    def __init__(self, book: Book, around: Around) -> None:
        self.book, self.around = book, around
        self._key = key_of(book.service)
        self._told: type[MeshError] | None = None
        self._saved: tuple[str, float] = ("", 0.0)
        self._saving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Watch, and watch again; ends by itself only where there is nothing to watch."""
        kv = await self.around.kv()
        if kv is None:
            self.book.problem = self.book.problem or "the registry has no key-value store, so there are no policy documents"
            self.book.settle()
            return
        try:
            await self._follow()
        finally:
            self.book.live = False

    async def _follow(self) -> None:
        failures = 0
        while True:
            start = self.around.clock()
            try:
                await self._watch()
            except MeshError as problem:
                self._lost(problem)
            except Exception as bug:  # noqa: BLE001 - of a backend: it must not stop governance for good
                self._lost(RegistryError(f"internal error: {bug!r}"), bug)
            failures = 1 if self.around.clock() - start > BACKOFF_CAP else failures + 1
            self.book.expire()
            await asyncio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        if self._told is not None and issubclass(self._told, RegistryDenied):
            return min(DENIED, 2.0 ** min(failures, 10)) * (0.5 + self.around.uniform() / 2)
        return backoff(failures, self.around.uniform())

    async def _watch(self) -> None:
        kv = await self.around.kv()
        if kv is None:
            raise RegistryUnavailable("the registry has no key-value store any more")
        async with aclosing(kv.watch(prefix_of(self.book.service))) as states:  # type: ignore[type-var]
            async for entries in states:
                await self._accept(entries)
        raise RegistryUnavailable("the watch ended")

    async def _accept(self, entries: Iterable[Entry]) -> None:
        book = self.book
        if self._told:
            log.warning("%s: the control store answers again", book.service)
            self._told = None
        book.live = True
        entry = next((each for each in entries if each.key == self._key), None)
        if entry is None:
            book.missing()
            book.expire()
            book.settle()
            return
        try:
            # Elsewhere than on the loop, which has heartbeats to send: a document may take milliseconds to read.
            document = await asyncio.to_thread(read, entry.value, book.service, entry.key)
            good = book.offer(document, KV)
        except ConfigError as wrong:
            book.refuse(wrong)
            good = False
        if not good:
            book.hold()
        book.settle()
        self._save()

    def _lost(self, problem: MeshError, bug: Exception | None = None) -> None:
        if self._told is not type(problem):
            self._told = type(problem)
            rules = f"version {self.book.document.version}" if self.book.document else "the policies of the code"
            log.warning("%s: the control store is lost, going on with %s: %s", self.book.service, rules, problem, exc_info=bug)
        self.book.live = False
        self.book.settle()

    def _save(self) -> None:
        """Beside the watch: a disk that hangs must not keep a change from us."""
        document, now = self.book.document, self.around.clock()
        if document is None or (self._saving is not None and not self._saving.done()):
            return
        digest, when = self._saved
        if digest != document.digest or now - when >= SAVE_EVERY:
            self._saved = (document.digest, now)
            self._saving = asyncio.create_task(self._keep(document.version, encoded(document.content)))

    async def _keep(self, version: int, content: bytes) -> None:
        book = self.book
        try:
            await asyncio.to_thread(self.around.store.save, book.service, version, content, self.around.wall())
        except Exception as problem:
            log.warning("%s: the policy document cannot be kept on disk: %s", book.service, problem,
                        exc_info=not isinstance(problem, StoreError))  # fmt: skip
        if book.document is not None and book.document.version != version:
            self._saving = None
            self._save()


def begin(book: Book, around: Around) -> None:
    """Have ``book`` hold what is on disk, if it is not too old. Blocks for as long as reading a small file takes."""
    try:
        kept = around.store.load(book.service)
        if kept is None:
            return
        document = read(kept.content, book.service, str(around.store.path(book.service)))
    except (StoreError, ConfigError) as wrong:
        log.warning("%s: the policies on disk are not used: %s", book.service, wrong)
        return
    age = max(0.0, around.wall() - kept.confirmed)  # a clock that was set back makes nothing younger than new
    if age > book.age_of(document):
        book.expired(document, age)
    else:
        book.offer(document, DISK, age=age)
