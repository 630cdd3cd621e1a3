"""A circuit whose state several processes share, through a storage of pybreaker's (``CircuitRedisStorage``).

Of the storage, the state and the time of opening are used; calls are counted in each process. All of it is done by threads of
their own, at most ten times a second while there are calls: no call waits for a storage, and when it cannot be reached, each
process goes by what it sees itself.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import weakref
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from meshlib.errors import ConfigError
from meshlib.policies.forks import on_fork
from meshlib.threads import DaemonExecutor, original

if TYPE_CHECKING:
    from meshlib.policies.breaker import Breaker
    from meshlib.policies.breaker_states import Phase

log = logging.getLogger(__name__)

POLL: Final = 0.1
"""Seconds between two looks at a storage."""

AGAIN: Final = 1.0
"""Seconds for which a storage that failed is left alone."""

THREADS: Final = 4


class Seen(NamedTuple):
    """What stands in a storage."""

    state: str
    opened_at: datetime | None


class Share:
    """What one circuit has in common with those of other processes."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker, self._clock, self._wall = breaker, breaker.clock, breaker.site.wall
        self._storage: Any = None if callable(breaker.policy.storage) else _owned(breaker)
        self._seen: Seen | None = None
        self._due = -math.inf
        self._news, self._failing = False, False
        self.forked()
        on_fork(self)

    @classmethod
    def of(cls, breaker: Breaker) -> Share | None:
        """That of ``breaker``; None where its policy has no storage."""
        return None if breaker.policy.storage is None else breaker.attached(cls, lambda: cls(breaker))

    def forked(self) -> None:
        """In a child process (and at first): whoever is at it is a thread of the parent."""
        # It is freed by another thread of the system, under gevent too; nobody waits for it.
        self._busy: threading.Lock = original("_thread", "allocate_lock")()

    def attend(self) -> None:
        """There are calls. Returns at once."""
        now = self._clock()
        if now >= self._due and self._busy.acquire(blocking=False):
            self._due = now + POLL
            _threads().submit(self._work, self._busy)

    def changed(self, before: Phase, after: Phase, adopted: bool) -> None:  # noqa: ARG002
        """The circuit has another state: the others are to know, unless they said so or it was done by hand."""
        if not adopted and not _by_hand(after):
            self._news = True
            if not self._failing:
                self._due = -math.inf
            self.attend()

    def _work(self, busy: threading.Lock) -> None:
        try:
            self.exchange()
            while self._news and not self._failing:
                self.exchange()
        finally:
            busy.release()
        if self._news and not self._failing:  # since the last look, and whoever brought it found us at it
            self.attend()

    def exchange(self) -> None:
        """Write what is new here, read what is new there. Blocks, in a thread that may."""
        try:
            if self._storage is None:
                self._storage = _frank(self._breaker.policy.storage(self._breaker.name))
            news, self._news = self._news, False
            phase = self._breaker.phase  # what is read below may be older than what comes after this
            written = self._write(phase) if news else None
            seen = Seen(self._storage.state, self._storage.opened_at)
        except Exception as problem:  # noqa: BLE001 - the storage's own, and those of what it wraps
            self._due = self._clock() + AGAIN
            if not self._failing:
                self._failing = True
                self._breaker.site.emit("circuit_breaker.unshared", problem=str(problem))
            return
        self._failing = False
        before, self._seen = self._seen, seen
        if seen.state != written if written else seen != before:
            self._adopt(seen, phase)

    def _write(self, phase: Phase) -> str | None:
        """Tell how it stands, and return that; None when that is by hand, which is no news to others."""
        if _by_hand(phase):
            return None
        try:
            if phase.name == "open":
                self._storage.opened_at = datetime.fromtimestamp(phase.opened_at, UTC)  # type: ignore[union-attr]
            self._storage.state = phase.name
        except Exception:
            self._news = True
            raise
        return phase.name

    def _adopt(self, seen: Seen, phase: Phase) -> None:
        """Another process has changed it, while ours was ``phase``. Half-open is its own affair: each has its own probes."""
        if _by_hand(phase):
            return
        if seen.state == "closed" and phase.name != "closed":
            self._breaker.adopt(phase, None)
        elif seen.state == "open" and phase.name != "open":
            left = self._left(seen, getattr(phase, "rounds", 0))
            if left > 0:
                self._breaker.adopt(phase, self._clock() + left)

    def _left(self, seen: Seen, rounds: int) -> float:
        """Seconds for which it is open, by the wall clocks of two: never longer than it would be here."""
        whole = self._breaker.policy.open_time(rounds)
        if seen.opened_at is None:
            return whole
        return min(whole, seen.opened_at.timestamp() + whole - self._wall())


def _by_hand(phase: Phase) -> bool:
    return phase.name == "disabled" or getattr(phase, "held", False)


_owners: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _owned(breaker: Breaker) -> Any:
    """The storage that the policy names, which is that of one circuit. Raises :class:`ConfigError` when it is another's."""
    storage = breaker.policy.storage
    owner = _owners.setdefault(storage, breaker.name)
    if owner != breaker.name:
        raise ConfigError(
            "circuit_breaker(storage=)",
            f"is the storage of {owner} already: with it, {breaker.name} would open and close together with that",
            example='storage=lambda name: CircuitRedisStorage("closed", redis, namespace=name)',
        )
    return _frank(storage)


def _frank(storage: Any) -> Any:
    """``storage`` such that its errors are raised: pybreaker's for Redis logs them and says "closed". The user's own object
    stays as it is: this is a copy, which shares the connections."""
    if not isinstance(getattr(type(storage), "logger", None), logging.Logger):
        return storage
    mine = copy.copy(storage)
    mine.logger = _Raising()
    return mine


class _Raising:
    """In place of a logger that is told of an exception while it is handled."""

    def exception(self, *_: object) -> NoReturn:
        """Raise it again."""
        raise  # noqa: PLE0704 - it is called where one is handled


@lru_cache(maxsize=1)
def _threads() -> DaemonExecutor:
    return DaemonExecutor(THREADS, "meshlib-breakers")


class _Threads:
    def forked(self) -> None:
        _threads.cache_clear()


_in_child = _Threads()
on_fork(_in_child)
