"""One fetch for all who want the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias

from meshlib.threads import promise, rlock


class Seat:
    """Somebody who waits for what another one fetches: until ``woken`` is resolved. Then it is ``found``, or one ``leads``
    now: whoever did has failed or gone. ``gone``: he waits no more."""

    __slots__ = ("found", "gone", "leads", "woken")

    def __init__(self) -> None:
        self.woken: Future[None] = promise()
        self.found: Any = None
        self.leads = self.gone = False


Flight: TypeAlias = "deque[Seat]"
"""A fetch under way: those who wait for it, in the order of coming."""


class Flights:
    """Who fetches what, by key. The lock is reentrant: a flow that nobody finished may be collected, and leave, wherever this
    thread is; nobody is woken while it is held."""

    def __init__(self) -> None:
        self.forked()

    def forked(self) -> None:
        """In a child process (and at first): those of the parent are the parent's."""
        self._lock = rlock()
        self._flights: dict[Hashable, Flight] = {}

    def board(self, key: Hashable) -> tuple[Flight, Seat | None]:
        """The flight for ``key``, and a seat there; without one, it begins now and is one's own to :meth:`land`."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = deque()
                return flight, None
            seat = Seat()
            flight.append(seat)
            return flight, seat

    def leave(self, key: Hashable, flight: Flight, seat: Seat) -> None:
        """Wait no more. Who was to lead just now lets the next one."""
        with self._lock:
            seat.gone = True
            if not seat.leads:
                with suppress(ValueError):
                    flight.remove(seat)
                return
        self.land(key, flight, None)

    def land(self, key: Hashable, flight: Flight, found: Any) -> None:
        """It is over: everybody gets what was ``found``; with None, the next one leads."""
        with self._lock:
            if self._flights.get(key) is not flight:  # the parent's, in a child process
                return
            told = self._next(flight) if found is None else [*flight]
            if found is not None or not told:
                del self._flights[key]
            for seat in told:
                seat.found = found
        for seat in told:
            seat.woken.set_result(None)

    @staticmethod
    def _next(flight: Flight) -> list[Seat]:
        while flight:
            seat = flight.popleft()
            seat.leads = not seat.gone  # he may be collected just now, in this thread
            if seat.leads:
                return [seat]
        return []

    def waiting(self, key: Hashable) -> int | None:
        """How many wait there; None when nobody fetches it."""
        with self._lock:
            flight = self._flights.get(key)
            return None if flight is None else len(flight)

    def __len__(self) -> int:
        return len(self._flights)
