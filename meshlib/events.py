"""What policies have to say: counted always, told to whoever wants to know."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from meshlib.threads import rlock

log = logging.getLogger(__name__)

SLOW: Final = 0.1
"""Seconds after which a listener is said to be slow: it holds up the call that it hears of."""


SERIES: Final = 4096
"""Events that are counted apart; what would be another one is counted by its kind, for the service :data:`OTHER`."""
OTHER: Final = "other"

_known: weakref.WeakSet[Events] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Event:
    """Something a policy did: ``kind`` is ``policy.verb`` (``"rate_limit.refused"``), ``service`` and ``method`` where,
    ``detail`` what else there is to say, for people and for metrics."""

    kind: str
    service: str = ""
    method: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


Listener: TypeAlias = Callable[[Event], object]


class Events:
    """Counts events, and hands each to its listeners in the thread that caused it. A listener that fails or is slow is
    logged, and harms nobody else."""

    def __init__(self, *, limit: int = SERIES, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._listeners: tuple[Listener, ...] = ()
        self._limit = limit
        self.forked()
        _known.add(self)

    def forked(self) -> None:
        """In a child process (and at first): a thread of the parent may have held the lock."""
        # Reentrant: a flow that nobody finished may be collected, and say something, wherever this thread is.
        self._lock = rlock()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell ``listener`` of every event from now on; the result, called, ends that."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def end() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not listener)

        return end

    def emit(self, kind: str, service: str = "", method: str = "", **detail: Any) -> None:
        """Something happened."""
        counts, key = self._counts, (kind, service, method)
        with self._lock:
            counts[key if key in counts or len(counts) < self._limit else (kind, OTHER, "")] += 1
        if self._listeners:
            self._tell(Event(kind, service, method, detail))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            start = self._clock()
            try:
                listener(event)
            except Exception:  # somebody else's code
                log.exception("a listener failed at %s", event.kind)
            if (took := self._clock() - start) > SLOW:
                log.warning("the listener %r took %.1f s for %s", listener, took, event.kind)

    def counts(self) -> dict[tuple[str, str, str], int]:
        """How often each happened: ``(kind, service, method)`` → times."""
        with self._lock:
            return dict(self._counts)


EVENTS: Final = Events()
"""Those of functions that are decorated: they belong to no mesh."""


def _after_fork() -> None:
    for each in list(_known):
        each.forked()


os.register_at_fork(after_in_child=_after_fork)
