"""All documents that one mesh uses: the way from its stacks to their books, and from there to the store."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final

from meshlib.backends.base import KeyValue
from meshlib.errors import ConfigError
from meshlib.events import Events
from meshlib.flow import Wait
from meshlib.governance.book import Book, Holding, Stack, as_provider
from meshlib.governance.follow import Around, DocumentFollower, begin
from meshlib.governance.policies import Operator, Policies, Work
from meshlib.governance.store import PolicyStore
from meshlib.model import ServiceUrl
from meshlib.settings import Settings
from meshlib.threads import lock

PATIENCE: Final = 4.0
"""How often an operator waits for as long as the store has for one answer: a document is put with several requests."""
STAND_BY: Final = 1.0
"""Seconds between two looks whether a document is still followed."""


class Office:
    """Keeps the books. ``kv`` gives the store of a mesh, None where its registry has none."""

    def __init__(
        self,
        settings: Settings,
        events: Events,
        kv: Callable[[], Awaitable[KeyValue | None]],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._events = settings, events
        store = PolicyStore(settings.state_path, registry=str(settings.registry), clock=wall)
        self._around = Around(kv, store, clock, wall)
        # A book lives while a stack is governed by it, or it is followed.
        self._books: weakref.WeakValueDictionary[ServiceUrl, Book] = weakref.WeakValueDictionary()
        self._of: weakref.WeakKeyDictionary[Any, Book] = weakref.WeakKeyDictionary()
        self._lock = lock()

    @property
    def open(self) -> bool:
        """Whether there are documents at all (``MESH_POLICIES``)."""
        return self._settings.policies == "on"

    def consume(self, stack: Holding, service: ServiceUrl, attend: Callable[[], object]) -> None:
        """Have the ``stack`` of a consumer under the documents of ``service`` from now on: at once under what is on disk, else
        the first calls ``attend``, which has the service followed, and wait a moment for the store."""
        if not self.open:
            return
        book = self._open_for(stack, service)

        def wait() -> Wait | None:
            attend()
            return book.wait(self._settings.cold_start_grace)

        book.consume(stack, wait)

    def provide(self, stack: Stack, service: ServiceUrl) -> None:
        """Have the ``stack`` of a provider of ``service`` under its documents from now on: at once under what is on disk."""
        if self.open and service.service:
            self._open_for(stack, service).govern(stack, as_provider)

    def _open_for(self, stack: Stack, service: ServiceUrl) -> Book:
        book = self.book(service)
        with self._lock:
            self._of[stack] = book
        return book

    def book(self, service: ServiceUrl) -> Book:
        """The book of ``service``, opened now with what is on disk if it is not known yet."""
        known = self._known(service)
        if known is not None:
            return known
        max_age, clock = self._settings.policy_max_age, self._around.clock
        book = Book(service.name, events=self._events, max_age=max_age, clock=clock)
        begin(book, self._around)  # not under the lock: two may do it, and one of them is thrown away
        with self._lock:
            return self._books.setdefault(service.name, book)

    def _known(self, service: ServiceUrl) -> Book | None:
        with self._lock:
            return self._books.get(service.name)

    async def follow(self, service: ServiceUrl) -> None:
        """Follow the documents of ``service`` until it is cancelled. There is one follower for each, whoever wants it: others
        stand by."""
        if not self.open:
            return
        book = self._known(service)
        if book is None:
            book = await asyncio.to_thread(self.book, service)  # which reads a file
        while book.followed:  # noqa: ASYNC110 - an event belongs to one loop, a book outlives it
            await asyncio.sleep(STAND_BY)
        book.followed = True
        try:
            await DocumentFollower(book, self._around).run()
        finally:
            book.followed = False

    def operator(self, spawn: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Future[Any]]) -> Operator:
        """What operators do; ``spawn`` runs a coroutine on the control plane's loop."""
        settings = self._settings

        def perform(work: Work) -> Any:
            async def operate() -> Any:
                kv = await self._around.kv()
                if kv is None:
                    raise ConfigError("MESH_REGISTRY", f"{settings.registry.scheme}:// has no key-value store, so there are no "
                                      "policy documents", example="consul://10.0.0.1:8500")  # fmt: skip
                return await work(Policies(kv, namespace=settings.namespace, wall=self._around.wall))

            return spawn(operate).result(PATIENCE * settings.registry_timeout)

        return Operator(perform)

    def forked(self) -> None:
        """In a child process: a thread of the parent may have held a lock."""
        self._lock = lock()
        for book in list(self._books.values()):
            book.forked()
