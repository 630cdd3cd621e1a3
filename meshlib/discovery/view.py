"""A live view: what this process knows of one service, read by calls without waiting.

A view never loses what it knows: an error leaves the snapshot as it is (and its age visible), an empty list makes suspects,
and a fresh process starts from the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from meshlib.balance.fleet import Fleet
from meshlib.discovery.merge import Known
from meshlib.flow import Wait
from meshlib.model import ServiceUrl, Snapshot
from meshlib.threads import promise

FRESH = 60.0
"""Seconds for which a list is good to go on with when nothing has followed it meanwhile."""


class View:
    """What this process knows of one service. Calls read it; only the control plane writes it.

    ``live`` is true while a registry's watch is healthy; ``problem`` says why it is not. ``epoch`` counts its followers, of
    which there is one while it is ``followed``, and only then is there anything to wait for: ``first`` is done otherwise.
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
        self.like: str | None = None  # a service with a similar name, if nobody ever knew this one; None: not looked for yet
        self.followed = False
        self.epoch = 0
        self._start, self._timeout, self._clock, self._wall = start, timeout, clock, wall
        self.last_read = clock()
        self.first = _done()
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
        if not listed and self.like:
            known += f"; did you mean {self.like!r}?"
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
        with suppress(InvalidStateError):  # they have gone
            self.first.set_result(None)

    def begin(self) -> int:
        """It is followed from now on, in the epoch that is returned. Callers wait again for the first list where the last
        attempt brought none, and give the registry its moment where what is known is from before nobody called: addresses
        may have been given to others since."""
        if self.first.done() and (self.known is None or self.known.snapshot.age(self._wall()) > FRESH):
            self.first = promise()  # before it is seen as followed: who sees that, waits for this one
        self.epoch += 1
        self.followed = True
        return self.epoch

    def end(self, epoch: int) -> None:
        """It is not followed any more, says its follower of ``epoch``. One that was abandoned and ends late says nothing: it
        may be another that follows now."""
        if epoch == self.epoch:
            self.live, self.problem = False, "it is not watched at the moment"
            self.settle()
            self.followed = False

    def close(self) -> None:
        """The mesh was closed: let go who still waits, and have it followed again on the next call. Nobody probes what was
        ejected, so it is trusted again."""
        self.settle()
        self._unfollowed()
        self.fleet.forget()

    def abandon(self) -> None:
        """The same in a child process."""
        self._unfollowed()
        self.fleet.forked()

    def _unfollowed(self) -> None:
        """Nothing follows it any more: keep what is known."""
        self.epoch += 1
        self._pid, self.followed, self.live = os.getpid(), False, False
        self.first = _done()  # another one: in a child process, a thread of the parent may have held its lock


def _done() -> Future[None]:
    future: Future[None] = promise()
    future.set_result(None)
    return future


def differ(before: Known, now: Known) -> bool:
    """True when other instances may be called ``now`` than ``before``, or with other weights."""
    return now.snapshot.instances != before.snapshot.instances or now.snapshot.suspects != before.snapshot.suspects
