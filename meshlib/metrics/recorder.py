"""What is recorded of each call: a number appended to a deque, sorted into a histogram 256 at a time.

Nothing is lost, and nobody waits. Appending to a deque is atomic, so a caller needs no lock; whoever finds a deque long takes
the numbers out of it, under a lock that callers only try to take, and a reader waits for. A number leaves the deque once, for
the one who holds the lock, and is in the counts before it is given back: a reader sees it in the one or in the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Final, TypeAlias

from meshlib.threads import lock, rlock

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds: the upper bounds of buckets that OpenTelemetry's conventions advise for HTTP."""

FULL: Final = 256
"""Numbers that wait to be counted before a caller counts them: 8 KiB of memory."""

SERIES: Final = 1000
"""Series that are kept apart; what would be another one is counted in :data:`OTHER`."""

Labels: TypeAlias = tuple[str, ...]
OTHER: Final = "other"


class Series:
    """How long calls took that are alike. The hot path is ``samples.append(seconds)``, and :meth:`fold` when it is full."""

    __slots__ = ("_counts", "_lock", "_sum", "_total", "samples")

    def __init__(self) -> None:
        self.forked()

    def forked(self) -> None:
        """In a child process (and at first): nothing was counted, and a thread of the parent may have held the lock."""
        self.samples: deque[float] = deque()
        self._lock = lock()
        self._counts, self._total, self._sum = [0] * len(BOUNDS), 0, 0.0

    def add(self, seconds: float) -> None:
        """A call took ``seconds``."""
        self.samples.append(seconds)
        if len(self.samples) >= FULL:
            self.fold()

    def fold(self) -> None:
        """Count what waits; nothing to do for who finds another at it (or itself: a finalizer may run in between)."""
        if self._lock.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._lock.release()

    def read(self) -> tuple[tuple[int, ...], int, float]:
        """How many took at most each of :data:`BOUNDS`, how many there were, and their seconds together."""
        with self._lock:
            self._count()
            return tuple(self._counts), self._total, self._sum

    def _count(self) -> None:
        samples = self.samples
        batch = sorted([samples.popleft() for _ in range(len(samples))])
        for index, bound in enumerate(BOUNDS):
            self._counts[index] += bisect_right(batch, bound)
        self._total += len(batch)
        self._sum += sum(batch)


class Recorder:
    """The series of one family, by their labels. At most ``limit`` are kept apart: beyond, calls count in one, whose first
    label is :data:`OTHER` and whose others are empty."""

    def __init__(self, labels: int, *, limit: int = SERIES) -> None:
        self._limit, self._other = limit, (OTHER,) + ("",) * (labels - 1)
        self._known: dict[Labels, Series] = {}
        # Reentrant: a flow that nobody finished may be collected, and counted, wherever this thread is.
        self._lock = rlock()

    def series(self, labels: Labels) -> Series:
        """Where calls with these ``labels`` count; the same each time, to be kept."""
        with self._lock:
            if labels not in self._known and len(self._known) >= self._limit:
                labels = self._other
            return self._known.setdefault(labels, Series())

    def __iter__(self) -> Iterator[tuple[Labels, Series]]:
        with self._lock:
            return iter(list(self._known.items()))

    def forked(self) -> None:
        """In a child process: it starts from nothing, in the same series."""
        self._lock = rlock()
        for series in self._known.values():
            series.forked()
