"""What the documents of one service are to this process: which holds, since when, and at which stacks.

A document takes effect everywhere or nowhere: its layers are built for all stacks first, then all of them are swapped. What is
wrong, older, or the same version with another content is refused, and what held before goes on.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeAlias

from meshlib.errors import ConfigError
from meshlib.events import Events
from meshlib.flow import Wait
from meshlib.governance.document import Document
from meshlib.model import ServiceUrl
from meshlib.policies.base import Policy, Site
from meshlib.policies.overlay import Origin, Overlaid, overlay, overlay_routes
from meshlib.threads import promise, rlock

log = logging.getLogger(__name__)

KV: Final = "kv"
DISK: Final = "disk"

Commit: TypeAlias = Callable[[], None]


class Stack(Protocol):
    """Where policies are in force: see :class:`meshlib.client.stack.Stack`."""

    site: Site
    policies: tuple[Policy, ...]
    origin: Origin | None

    def prepare(self, policies: Iterable[Policy], origin: Origin | None = None) -> Commit: ...


class Holding(Stack, Protocol):
    """One whose calls can wait for what its layers are to be."""

    def hold(self, wait: Callable[[], Wait | None]) -> None: ...
    def release(self) -> None: ...


Side: TypeAlias = Callable[[Document, Stack], Overlaid]
"""What a document says of a stack, which is a consumer's or a provider's."""


def as_consumer(document: Document, stack: Stack) -> Overlaid:
    """See :data:`Side`."""
    return overlay(stack.policies, document.consumer.at(stack.site.method), document.mode)


@dataclass(frozen=True, slots=True)
class Floor:
    """The last version that held: no lower one does any more, nor the same with another content."""

    version: int = 0
    digest: str = ""


def as_provider(document: Document, stack: Stack) -> Overlaid:
    """See :data:`Side`."""
    return overlay_routes(stack.policies, document.provider.policies, document.provider.routes, document.mode)


class Book:
    """The documents of ``service``. ``max_age`` are the seconds for which one holds that nobody confirms; ``clock`` is
    monotonic. ``live`` is true while a store is watched, ``followed`` while somebody tries to, ``problem`` says why it is not,
    or what was refused last. Safe for threads: the control plane offers, whoever makes a client has it governed."""

    def __init__(
        self, service: ServiceUrl, *, events: Events, max_age: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.service, self._events, self._max_age, self._clock = service, events, max_age, clock
        self.document: Document | None = None
        self.source = ""
        self.confirmed = 0.0
        self.floor = Floor()
        self.live, self.followed, self.problem = False, False, ""
        self.first: Future[None] = promise()
        """Done when it is known whether there is a document, or that nobody says so."""
        self._until = 0.0
        self._told: str | None = None
        self._stacks: weakref.WeakKeyDictionary[Stack, Side] = weakref.WeakKeyDictionary()
        self._held: weakref.WeakSet[Holding] = weakref.WeakSet()
        self._lock = rlock()  # binding is others' code, which may make clients

    def forked(self) -> None:
        """In a child process: a thread of the parent may have held the lock."""
        self._lock, self.followed = rlock(), False
        if not self.first.done():
            self.first, self._until = promise(), 0.0  # as well, and nobody of the parent waits here

    # -- stacks

    def consume(self, stack: Holding, wait: Callable[[], Wait | None]) -> None:
        """Have the ``stack`` of a consumer governed; as long as it is not known whether there is a document, calls ``wait``."""
        self.govern(stack)
        with self._lock:
            if self.document is None and not self.first.done():
                self._held.add(stack)
                stack.hold(wait)

    def govern(self, stack: Stack, side: Side = as_consumer) -> None:
        """Have ``stack`` under the document that holds, now and whenever it changes. One that does not go together with its
        policies leaves it as it is, with an alarm: the document holds elsewhere already."""
        try:
            with self._lock:
                self._stacks[stack] = side
                if self.document is not None:
                    self._prepared(stack, self.document)()
        except ConfigError as wrong:
            assert self.document is not None
            stack.origin = replace(self._origin(self.document), problem=str(wrong))
            self._alarm("governance.rejected", wrong, self.document.version)

    def _prepared(self, stack: Stack, document: Document | None) -> Commit:
        if document is None:
            return stack.prepare(stack.policies)
        try:
            over = self._stacks[stack](document, stack)
            return stack.prepare(over.policies, over.origin(document.version, self.source, document.mode))
        except ConfigError as wrong:
            who = "the provider" if self._stacks[stack] is as_provider else stack.site.method or "a client"
            where = f"at {who}: {wrong.problem}"
            raise ConfigError(wrong.name, where, source=self._key, example=wrong.example) from None
        except Exception as bug:
            log.exception("%s: a document cannot be put in force", self.service)
            raise ConfigError("document", f"cannot be put in force: {bug!r:.200}", source=self._key) from bug

    def _origin(self, document: Document) -> Origin:
        return Origin(version=document.version, source=self.source, mode=document.mode)

    @property
    def _key(self) -> str:
        return f"the policy document of {self.service}"

    def wait(self, patience: float) -> Wait | None:
        """What a first call is to wait for, if anything: all of them together for ``patience`` seconds."""
        if self.first.done():
            return None
        now = self._clock()
        self._until = self._until or now + patience
        if now < self._until:
            return Wait(self.first, self._until - now)
        self.settle()
        return None

    def settle(self) -> None:
        """Let calls go on, with a document or without."""
        if self.first.done():
            return
        with self._lock:
            if self.document is None:
                for stack in list(self._held):
                    stack.release()
            self._held.clear()
            with suppress(InvalidStateError):  # another thread has done it
                self.first.set_result(None)

    # -- documents

    def offer(self, document: Document, source: str, *, age: float = 0.0) -> bool:
        """``document`` was found in ``source`` (``"kv"``, ``"disk"``), confirmed ``age`` seconds ago. False when it is refused,
        with an alarm (the first time)."""
        floor = self.floor
        same = (document.version, document.digest) == (floor.version, floor.digest)
        if same and self.document is not None:
            self._confirm(source, age)
            return True
        if document.version < floor.version or (document.version == floor.version and not same):
            self.refuse(_rolled_back(document, floor, self._key), document.version)
            return False
        try:
            self._swap(document, source)
        except ConfigError as wrong:
            self.refuse(wrong, document.version)
            return False
        self.floor, self.confirmed = Floor(document.version, document.digest), self._clock() - age
        self.problem, self._told = "", None
        log.info("%s: policy document, version %d (%s, %s)", self.service, document.version, source, document.mode)
        self._emit("governance.applied", version=document.version, source=source, mode=document.mode)
        return True

    def _swap(self, document: Document | None, source: str) -> None:
        with self._lock:
            before, self.source = self.source, source
            try:
                commits = [self._prepared(stack, document) for stack in list(self._stacks)]
            except BaseException:
                self.source = before
                raise
            for commit in commits:
                commit()
            self.document = document
        self.settle()

    def _confirm(self, source: str, age: float) -> None:
        self.confirmed = max(self.confirmed, self._clock() - age)
        self.problem, self._told = "", None
        if source == self.source or source != KV:
            return
        with self._lock:
            self.source = source
            for stack in list(self._stacks):
                if stack.origin is not None:
                    stack.origin = replace(stack.origin, source=source)

    def refuse(self, wrong: ConfigError, version: int = 0) -> None:
        """What the store has cannot be used: what held before goes on."""
        self._alarm("governance.rejected", wrong, version)

    def hold(self) -> None:
        """The store answers, with what was refused: whoever put that there is to put it right, however long it takes."""
        if self.document is not None:
            self.confirmed = self._clock()

    def missing(self) -> None:
        """The store answers, and has no document, though there was one: it has lost its state, for a document that is to hold
        no longer is replaced by an empty one. What held before goes on, and grows old."""
        if self.floor.version:
            wrong = ConfigError("document", "is not there any more; one that is to end is replaced by an empty one of a higher "
                                "version", source=self._key)  # fmt: skip
            self._alarm("governance.missing", wrong, self.floor.version)

    def expire(self) -> None:
        """End what nobody has confirmed for longer than its age allows: the policies of the code hold again."""
        document = self.document
        if document is None or self._clock() - self.confirmed <= self.max_age:
            return
        self._swap(None, "")
        self.expired(document, self._clock() - self.confirmed)

    def expired(self, document: Document, age: float) -> None:
        """Say that ``document`` is too old to hold; a lower version is refused all the same."""
        self.floor = Floor(document.version, document.digest)
        problem = f"was confirmed {age:.0f} s ago, and is not used any more: the policies of the code hold"
        self._alarm("governance.expired", ConfigError("document", problem, source=self._key), document.version)

    @property
    def max_age(self) -> float:
        """Seconds for which the document holds that nobody confirms."""
        return self.age_of(self.document)

    def age_of(self, document: Document | None) -> float:
        """The same for ``document``."""
        return self._max_age if document is None or document.max_age is None else document.max_age

    def _alarm(self, kind: str, wrong: ConfigError, version: int) -> None:
        """Once for each problem: a watch brings the same document again and again."""
        self.problem = str(wrong)
        if self._told != self.problem:
            self._told = self.problem
            log.error("%s: policy document: %s", self.service, wrong)
            self._emit(kind, version=version, field=wrong.name, problem=str(wrong))

    def _emit(self, kind: str, **detail: Any) -> None:
        self._events.emit(kind, str(self.service), **detail)


def _rolled_back(document: Document, floor: Floor, key: str) -> ConfigError:
    if document.version < floor.version:
        problem = f"{document.version} is lower than {floor.version}, which was in force"
    else:
        problem = f"{document.version} was in force with another content"
    problem += "; old rules come back under a new version"
    return ConfigError("version", problem, source=key, example=str(floor.version + 1))
