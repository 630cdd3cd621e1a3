"""The layer that gives each attempt its instance, and tells the fleet how it went."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.explain import Seen
from meshlib.balance.fleet import Fleet
from meshlib.balance.narrow import among, eligible, usable
from meshlib.balance.pickers import Choose, Picker
from meshlib.balance.pickers.plain import round_robin
from meshlib.balance.tiers import NOWHERE, Here, Pool, Tiers
from meshlib.deadline import bounded, of_attempt
from meshlib.errors import AttemptError, AttemptTimeout, ConnectFailed, ConnectionLost, DeadlineExceeded, NoInstances
from meshlib.flow import Call, Flow, Next, Wait, tried_instances
from meshlib.outcome import Outcome, of_answer, of_error
from meshlib.priorities import inherited, marked
from meshlib.subsets import Subset

log = logging.getLogger(__name__)

ANSWERED = Outcome.ANSWERED

SUBSETS = 128
"""Subsets of a service for which a choice is kept ready."""


class Source(Protocol):
    """Where a fleet comes from."""

    fleet: Fleet

    def attend(self) -> Wait | None:
        """Note that the service is in use. Returns what to wait for when nothing is known of it yet."""
        ...

    def missing(self) -> str:
        """Why there is nobody to call, for the error message."""
        ...


class Balance:
    """Picks an endpoint for the call, and tells fleet and picker how it did. ``choose`` is ready for the fleet as it is: it
    is made when the fleet changes, never by a call. So is the choice from each subset that calls ask for, once one has."""

    def __init__(
        self,
        source: Source,
        picker: Picker,
        *,
        here: Here = NOWHERE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source, self.picker, self._here, self._clock = source, picker, here, clock
        self._tell, self._observe = source.fleet.told, getattr(picker, "observe", None)
        self.choose: Choose = self._refuse
        self._subsets: dict[Subset, Choose] = {}
        source.fleet.watch(self)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        wait = self.source.attend()
        if wait is not None:
            yield self._within_deadline(wait, call)
        endpoint = self.pick(call)
        start = self._clock()
        unlimited = call.deadline is None and call.attempt_timeout is None
        attempt = (call if unlimited else bounded(call, start)).to(endpoint)
        if level := inherited():
            attempt.headers = marked(attempt.headers, level)
        last_resort = endpoint.ejected is not None
        if call.visited is not None:
            call.visited.append(endpoint)
        try:
            response = yield from proceed(attempt)
        except AttemptError as failure:
            self._failed(endpoint, failure, start, call, last_resort=last_resort)
            attempt.close()
            raise
        except DeadlineExceeded as late:
            attempt.close()
            if attempt.deadline == call.deadline:
                raise
            raise self._failed(endpoint, of_attempt(late), start, call, last_resort=last_resort) from late
        except BaseException:
            attempt.close()  # a layer below may have refused before anything was sent
            raise
        now = self._clock()
        outcome = ANSWERED if response.status_code < 400 else of_answer(response)
        self._tell(endpoint, now - start, outcome, now)
        if self._observe is not None:
            self._observe(endpoint, now - start, outcome, now)
        return response

    def _told(self, endpoint: Endpoint, start: float, outcome: Outcome) -> float:
        now = self._clock()
        self._tell(endpoint, now - start, outcome, now)
        if self._observe is not None:
            self._observe(endpoint, now - start, outcome, now)
        return now - start

    def _failed(
        self, endpoint: Endpoint, failure: AttemptError, start: float, call: Call, *, last_resort: bool
    ) -> AttemptError:
        failure.endpoint, failure.last_resort, failure.seen = endpoint, last_resort, self._seen(call)
        seconds = self._told(endpoint, start, of_error(failure))
        if isinstance(failure, (ConnectFailed, ConnectionLost)):
            self.source.fleet.eject(endpoint)
        elif isinstance(failure, AttemptTimeout) and not failure.unsent:
            self.source.fleet.hung(endpoint, seconds)
        return failure

    def _within_deadline(self, wait: Wait, call: Call) -> Wait:
        if call.deadline is None:
            return wait
        return Wait(wait.future, max(0.0, min(wait.timeout, call.deadline - self._clock())))

    def pick(self, call: Call) -> Endpoint:
        """The endpoint for ``call``, none that it tried before. Raises :class:`NoInstances`."""
        if call.tried or call.visited:
            endpoint = self._again(call)
            if call.again is not None:
                call.again.append(endpoint)
            return endpoint
        if call.target.instance:
            return self._exactly(call)
        if call.subset is not None:
            return self._any(call)
        return self.choose(call)

    def _again(self, call: Call) -> Endpoint:
        if call.target.instance:
            return self._exactly(call)
        return self._another(call) if call.tried else self._elsewhere(call, call.visited or [])

    def _any(self, call: Call) -> Endpoint:
        if call.subset is None:
            return self.choose(call)
        return (self._subsets.get(call.subset) or self._added(call.subset))(call)

    def prepare(self) -> None:
        """See :class:`meshlib.balance.fleet.Watcher`. Of several threads at it, the last sees the newest tiers."""
        fleet, tiers = self.source.fleet, None
        while tiers is not fleet.tiers:
            tiers = fleet.tiers
            self.choose = self._ready(None, tiers)
            self._subsets = {subset: self._ready(subset, tiers) for subset in list(self._subsets)}

    def _added(self, subset: Subset) -> Choose:
        """The choice from a subset that was not asked for before. The oldest make room."""
        known = self._subsets  # before the tiers: what is put there may be newer than the rest, but never older
        for old in list(known)[: max(0, len(known) - SUBSETS + 1)]:
            known.pop(old, None)
        choose = known[subset] = self._ready(subset, self.source.fleet.tiers)
        return choose

    def _ready(self, subset: Subset | None, tiers: Tiers) -> Choose:
        pool = eligible(tiers, subset, here=self._here)
        return self._refuse if pool is None else self._chooser(pool)

    def _chooser(self, pool: Pool) -> Choose:
        try:
            return self.picker(pool)
        except Exception:  # a picker may be anybody's: its bug must not keep the news of an instance from all others
            log.exception("the picker %r failed for %s: round robin instead", self.picker, self.source.fleet.service)
            return round_robin(pool)

    def _elsewhere(self, call: Call, visited: list[Endpoint]) -> Endpoint:
        """For a call that is repeated: one that it was not at, else one that it was not at just now, else any. An answer may
        have brought it here, so nobody is called who would not be called otherwise."""
        tiers = self.source.fleet.tiers
        for avoided in (visited[:], visited[-1:]):
            left = tuple(endpoint for endpoint in usable(tiers, call.subset) if endpoint not in avoided)
            pool = among(left, tiers, call.subset, self._here)
            if pool is not None:
                return self._chooser(pool)(call)
        return self._any(call)

    def _another(self, call: Call) -> Endpoint:
        tiers = self.source.fleet.tiers
        pool = eligible(
            tiers, call.subset, here=self._here, tried=call.tried, visited=call.visited or (), last_resorts=call.last_resorts
        )
        if pool is None:
            raise self._nobody(call, "no instance is left untried")
        return self._chooser(pool)(call)

    def _exactly(self, call: Call) -> Endpoint:
        endpoint = self.source.fleet.find(call.target.instance)
        if endpoint is None or endpoint in call.tried:
            raise self._nobody(call, self.source.missing())
        return endpoint

    def _refuse(self, call: Call) -> Endpoint:
        listed = len(self.source.fleet.tiers.members)
        if call.subset is not None and listed:
            raise self._nobody(call, f"none of {listed} instances is a usable one of {call.subset}")
        raise self._nobody(call, self.source.missing())

    def _nobody(self, call: Call, why: str) -> NoInstances:
        error = NoInstances(f"{call.target}: {why}", service=call.target, tried=tried_instances(call.tried))
        error.seen = self._seen(call)
        return error

    def _seen(self, call: Call) -> Seen:
        fleet = self.source.fleet
        return Seen(fleet, fleet.tiers, fleet.snapshot, call)
