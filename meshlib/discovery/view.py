"""A live view: what this process knows of one service, read by calls without waiting.

A view never loses what it knows: an error leaves the snapshot as it is (and its age visible), an empty list makes suspects,
and a fresh process starts from the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future

from meshlib.balance.fleet import Fleet
from meshlib.discovery.merge import Known
from meshlib.flow import Wait
from meshlib.model import ServiceUrl, Snapshot

FRESH = 60.0
"""Seconds for which a list is good to go on with when nothing has followed it meanwhile."""


class View:
    """What this process knows of one service. Calls read it; only the control plane writes it.

    ``live`` is true while a registry's watch is healthy; ``problem`` says why it is not.
    """

    def __init__(
        self,
        service: ServiceUrl,
        fleet: Fleet,
        start: Callable[[View], None],
        *,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.service, self.fleet = service, fleet
        self.known: Known | None = None
        self.live = False
        self.problem = ""
        self.followed = False
        self._start, self._timeout, self._clock, self._wall = start, timeout, clock, wall
        self.last_read = clock()
        self.first: Future[None] = Future()
        self._pid = os.getpid()

    @property
    def snapshot(self) -> Snapshot | None:
        """The instances known now, or None before anything is."""
        return self.known.snapshot if self.known else None

    def attend(self) -> Wait | None:
        """See :class:`meshlib.balance.layer.Source`."""
        self.last_read = self._clock()
        if not self.followed or self._pid != os.getpid():
            self._start(self)
        return None if self.first.done() else Wait(self.first, self._timeout)

    def missing(self) -> str:
        """See :class:`meshlib.balance.layer.Source`."""
        problem = self.problem or "the registry has not answered"
        if self.known is None:
            return f"no list of instances yet: {problem}"
        listed = len(self.known.snapshot.instances)
        known = "no instance is registered" if not listed else f"none of {listed} instances may be called"
        return known if self.live else f"{known} (as of {self.known.snapshot.age(self._wall()):.0f} s ago: {problem})"

    def publish(self, known: Known) -> None:
        """Swap in what is known now. The fleet comes first: a caller that finds something known waits no more, and must find
        the endpoints, too."""
        if self.known is None or differ(self.known, known):
            self.fleet.update(known.snapshot)
        self.known = known
        self.settle()

    def settle(self) -> None:
        """Let the first callers go on, with or without a list."""
        if not self.first.done():
            self.first.set_result(None)

    def begin(self) -> None:
        """It is followed from now on. Callers wait again for the first list where the last attempt brought none, and give the
        registry its moment where what is known is from before nobody called: addresses may have been given to others since."""
        self.followed = True
        if self.first.done() and (self.known is None or self.known.snapshot.age(self._wall()) > FRESH):
            self.first = Future()

    def abandon(self) -> None:
        """Nothing follows it any more (the mesh was closed, or this is a child process): keep what is known, have it followed
        again on the next call. Nobody probes what was ejected, so it is trusted again."""
        self._pid, self.followed, self.live = os.getpid(), False, False
        self.first = Future()
        if self.known is not None:
            self.settle()
        self.fleet.forked()


def differ(before: Known, now: Known) -> bool:
    """True when other instances may be called ``now`` than ``before``, or with other weights."""
    return now.snapshot.instances != before.snapshot.instances or now.snapshot.suspects != before.snapshot.suspects
