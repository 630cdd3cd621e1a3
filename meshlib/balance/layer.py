"""The layer that gives each attempt its instance, and tells the fleet how it went."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from meshlib.balance.fleet import Endpoint, Fleet, Tiers
from meshlib.balance.pickers import Choose, Picker
from meshlib.errors import AttemptError, ConnectFailed, ConnectionLost, NoInstances
from meshlib.flow import Call, Flow, Next, Wait, tried_instances

LAST_RESORTS = 3
"""A call that has failed at so many ejected endpoints goes to no further one: with all of a large fleet dead it would try for
ever."""


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
    """Picks an endpoint for the call and takes it out at once when its connection fails."""

    def __init__(self, source: Source, picker: Picker, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.source, self.picker, self._clock = source, picker, clock
        self._prepared: tuple[Tiers | None, Choose] = (None, _nobody)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        wait = self.source.attend()
        if wait is not None:
            yield self._within_deadline(wait, call)
        endpoint = self.pick(call)
        attempt = (call if wait is None else call.hastened(self._clock())).to(endpoint)
        last_resort = endpoint.ejected
        try:
            response = yield from proceed(attempt)
        except AttemptError as failure:
            failure.endpoint, failure.last_resort = endpoint, last_resort
            if isinstance(failure, (ConnectFailed, ConnectionLost)):
                self.source.fleet.eject(endpoint)
            attempt.close()
            raise
        except BaseException:
            attempt.close()  # a layer below may have refused before anything was sent
            raise
        if endpoint.failures:
            endpoint.failures = 0
        return response

    def _within_deadline(self, wait: Wait, call: Call) -> Wait:
        if call.deadline is None:
            return wait
        return Wait(wait.future, max(0.0, min(wait.timeout, call.deadline - self._clock())))

    def pick(self, call: Call) -> Endpoint:
        """The endpoint for ``call``, none that it tried before. Raises :class:`NoInstances`."""
        if call.target.instance:
            return self._exactly(call)
        tiers, choose = self._prepared
        if tiers is not self.source.fleet.tiers:
            tiers, choose = self._prepare()
        if not call.tried:
            return choose(call)
        return self._another(call, self.source.fleet.tiers)

    def _prepare(self) -> tuple[Tiers, Choose]:
        tiers = self.source.fleet.tiers
        usable = tiers.usable
        prepared = (tiers, self.picker(usable) if usable else self._refuse)
        self._prepared = prepared  # one reference: another thread sees a whole pair
        return prepared

    def _another(self, call: Call, tiers: Tiers) -> Endpoint:
        last = tiers.ejected if call.last_resorts < LAST_RESORTS else ()
        for tier in (tiers.prime, tiers.reserve, last):
            left = tuple(endpoint for endpoint in tier if endpoint not in call.tried)
            if left:
                return self.picker(left)(call)
        raise NoInstances(f"{call.target}: no instance is left untried", service=call.target, tried=tried_instances(call.tried))

    def _exactly(self, call: Call) -> Endpoint:
        endpoint = self.source.fleet.find(call.target.instance)
        if endpoint is None or endpoint in call.tried:
            raise NoInstances(f"{call.target}: {self.source.missing()}", service=call.target)
        return endpoint

    def _refuse(self, call: Call) -> Endpoint:
        raise NoInstances(f"{call.target}: {self.source.missing()}", service=call.target)


def _nobody(call: Call) -> Endpoint:
    raise AssertionError(call)
