"""The instances of one service as this process sees them: a frozen snapshot joined with what calls have found out.

A :class:`Fleet` is swapped whole: every snapshot and every change of health builds new :class:`Tiers`, and whoever picks
sees either the old or the new ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from meshlib.model import Instance, ServiceUrl, Snapshot, Status


class Endpoint:
    """One generation of one instance, with its state in this process.

    ``in_flight`` holds the attempts under way (adding to and discarding from a set are atomic, so it needs no lock and a
    release that comes twice does no harm); ``failures`` counts ejections since the last answer.
    """

    __slots__ = ("_on_drained", "ejected", "failures", "in_flight", "instance")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.in_flight: set[object] = set()
        self.ejected = False
        self.failures = 0
        self._on_drained: Callable[[Endpoint], object] | None = None

    def release(self, attempt: object) -> None:
        """``attempt`` is over: its answer has been read, or there is none."""
        self.in_flight.discard(attempt)
        if self._on_drained is not None and not self.in_flight:
            self._on_drained(self)

    def retire(self, on_drained: Callable[[Endpoint], object]) -> None:
        """It is no longer listed: have ``on_drained`` called when nothing is in flight. Attempts that picked it just before
        may still come, so it can be called again."""
        self._on_drained = on_drained
        if not self.in_flight:
            on_drained(self)

    @property
    def retired(self) -> bool:
        """True once it is no longer listed."""
        return self._on_drained is not None

    def __repr__(self) -> str:
        return f"<Endpoint {self.instance.url} at {self.instance.netloc}{' ejected' if self.ejected else ''}>"


@dataclass(frozen=True, slots=True, eq=False)
class Tiers:
    """Endpoints in the order of trust; a lower tier is used only when the ones above it have nobody left.

    ``prime`` are up and healthy. ``reserve`` are suspects (unlisted, unconfirmed) and draining ones: they probably answer.
    ``ejected`` failed a moment ago: better than nothing. Instances in maintenance are in none.
    """

    prime: tuple[Endpoint, ...] = ()
    reserve: tuple[Endpoint, ...] = ()
    ejected: tuple[Endpoint, ...] = ()

    @property
    def usable(self) -> tuple[Endpoint, ...]:
        """The highest tier that has anybody."""
        return self.prime or self.reserve or self.ejected


def sort(endpoints: Iterable[Endpoint], suspects: frozenset[str]) -> Tiers:
    """Put each endpoint into its tier."""
    prime, reserve, ejected = [], [], []
    for endpoint in endpoints:
        instance = endpoint.instance
        if instance.status is Status.MAINTENANCE:
            continue
        if endpoint.ejected:
            ejected.append(endpoint)
        elif instance.id in suspects or instance.status is Status.DRAINING:
            reserve.append(endpoint)
        else:
            prime.append(endpoint)
    return Tiers(tuple(prime), tuple(reserve), tuple(ejected))


class Fleet:
    """All endpoints of ``service``. Thread-safe; readers take :attr:`tiers` without a lock.

    ``on_eject`` is told of each endpoint taken out (have it probed), ``on_drained`` of each that is gone and idle (close its
    connections).
    """

    def __init__(
        self,
        service: ServiceUrl,
        *,
        on_eject: Callable[[Fleet, Endpoint], object] = lambda _fleet, _endpoint: None,
        on_drained: Callable[[Endpoint], object] = lambda _endpoint: None,
    ) -> None:
        self.service = service
        self.tiers = Tiers()
        self._on_eject, self._on_drained = on_eject, on_drained
        self._snapshot = Snapshot(service)
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.Lock()

    def update(self, snapshot: Snapshot) -> None:
        """Take over ``snapshot``. An endpoint of the same generation keeps its state, others start afresh."""
        with self._lock:
            before, self._endpoints, self._snapshot = self._endpoints, {}, snapshot
            for instance in snapshot.instances:
                endpoint = before.get(instance.id)
                if endpoint is None or endpoint.instance.key != instance.key:
                    endpoint = Endpoint(instance)
                endpoint.instance = instance
                self._endpoints[instance.id] = endpoint
            self._sort()
            gone = [one for one in before.values() if self._endpoints.get(one.instance.id) is not one]
        for endpoint in gone:
            endpoint.retire(self._on_drained)

    def eject(self, endpoint: Endpoint) -> None:
        """Take ``endpoint`` out after a failed connection, until :meth:`restore`."""
        with self._lock:
            if endpoint.ejected or endpoint.retired:
                return
            endpoint.ejected = True
            endpoint.failures += 1
            self._sort()
        self._on_eject(self, endpoint)

    def restore(self, endpoint: Endpoint) -> None:
        """Bring ``endpoint`` back: a probe reached it."""
        with self._lock:
            endpoint.ejected = False
            self._sort()

    def rest(self) -> None:
        """Nobody calls the service any more: idle connections are closed, and what was ejected is trusted again, so that
        nobody goes on probing it."""
        with self._lock:
            for endpoint in self._endpoints.values():
                endpoint.ejected = False
            self._sort()
            idle = [endpoint for endpoint in self._endpoints.values() if not endpoint.in_flight]
        for endpoint in idle:
            self._on_drained(endpoint)

    def find(self, instance_id: str) -> Endpoint | None:
        """The endpoint of exactly this instance, whatever its status."""
        return self._endpoints.get(instance_id)

    def forked(self) -> None:
        """In a child process: forget calls in flight, ejections and a lock that the parent's threads had."""
        self._lock = threading.Lock()
        self._endpoints = {instance.id: Endpoint(instance) for instance in self._snapshot.instances}
        self._sort()

    def _sort(self) -> None:
        self.tiers = sort(self._endpoints.values(), self._snapshot.suspects)
