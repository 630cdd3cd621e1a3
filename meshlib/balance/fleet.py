"""The instances of one service as this process sees them: a frozen snapshot joined with what calls have found out.

A :class:`Fleet` is swapped whole: every snapshot and every change of health builds new :class:`Tiers`, and whoever picks
sees either the old or the new ones.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from meshlib.balance.endpoint import Ejection, Endpoint, Reason
from meshlib.balance.outliers import Outliers, Rules
from meshlib.balance.tiers import Tiers, sort
from meshlib.model import ServiceUrl, Snapshot
from meshlib.outcome import Outcome
from meshlib.threads import lock

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who picks from a fleet."""

    def prepare(self) -> object:
        """The fleet's tiers have changed."""
        ...


class Fleet:
    """All endpoints of ``service``, as the ``snapshot`` lists them. Thread-safe; readers take :attr:`tiers` without a lock.

    ``on_eject`` is told of each endpoint taken out (see to its return: :meth:`restore`), ``on_drained`` of each that is
    gone and idle (close its connections), ``on_due`` when there is something to judge (have :meth:`judge` called soon, not
    by a caller of the service).
    """

    def __init__(
        self,
        service: ServiceUrl,
        *,
        rules: Rules | None = None,
        on_eject: Callable[[Fleet, Endpoint], object] = lambda _fleet, _endpoint: None,
        on_drained: Callable[[Endpoint], object] = lambda _endpoint: None,
        on_due: Callable[[Fleet], object] = lambda fleet: fleet.judge(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service, self.rules = service, rules or Rules()
        self.tiers = Tiers()
        self._on_eject, self._on_drained, self._on_due, self._clock = on_eject, on_drained, on_due, clock
        self._outliers = Outliers(self.rules, clock())
        self.snapshot: Snapshot | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._memo: dict[Any, Any] = {}
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self._lock = lock()

    # -- what the registry says

    def update(self, snapshot: Snapshot) -> None:
        """Take over ``snapshot``. An endpoint of the same generation keeps its state, others start afresh."""
        with self._lock:
            joined = 0.0 if self.snapshot is None else self._clock()
            before, self.snapshot, self._memo = self._endpoints, snapshot, {}
            self._endpoints = now = {}
            for instance in snapshot.instances:
                endpoint = before.get(instance.id)
                if endpoint is None or (endpoint.instance is not instance and endpoint.instance.key != instance.key):
                    endpoint = Endpoint(instance, joined=joined)
                endpoint.instance = instance
                now[instance.id] = endpoint
            self._sort()
        self._tell()
        for endpoint in [one for key, one in before.items() if now.get(key) is not one]:
            endpoint.retire(self._on_drained)

    # -- what calls say

    def told(self, endpoint: Endpoint, seconds: float, outcome: Outcome, now: float) -> None:
        """An attempt at ``endpoint`` ended at monotonic time ``now``, after ``seconds``."""
        if outcome is Outcome.ANSWERED:
            recent = endpoint.recent or self._outliers.begin(endpoint, now)
            recent.good += 1
            recent.seconds += seconds
            if endpoint.failures:
                endpoint.failures = 0
            due = now >= self._outliers.due or (endpoint.ejections and self._outliers.slow_again(seconds, now))
        elif outcome is Outcome.FAILED:
            endpoint.failures += 1
            due = self._outliers.failed(endpoint, now)
        else:
            return
        if due:
            self._outliers.due = now + self.rules.interval
            self._on_due(self)

    def hung(self, endpoint: Endpoint, seconds: float) -> None:
        """``endpoint`` did not answer in ``seconds``. Unless that is about what an answer takes, or too many are out already,
        nobody is to wait for it again before it answers a probe."""
        if seconds > self._outliers.patience:
            self.eject(endpoint, Ejection(Reason.HUNG))

    def judge(self) -> None:
        """Eject those that do worse than the others. For the control plane: it looks at every endpoint called lately."""
        for endpoint, verdict in self._outliers.judge(self._clock()):
            seconds = self._outliers.sentence(endpoint.ejections + 1)
            if self.eject(endpoint, Ejection(Reason.OUTLIER, seconds)):
                endpoint.ejections += 1
                log.warning("%s is not called for %.1f s: %s", endpoint.instance.url, seconds, verdict)

    # -- what becomes of it

    def eject(self, endpoint: Endpoint, ejection: Ejection | None = None) -> bool:
        """Take ``endpoint`` out until :meth:`restore`, by default as unreachable. False when it is out or gone already, or
        when too many are out to let one go that might answer."""
        ejection = ejection or Ejection(Reason.UNREACHABLE)  # each its own: restore() ends none but the one it is about
        with self._lock:
            if endpoint.ejected or endpoint.retired:
                return False
            if ejection.reason is not Reason.UNREACHABLE and not self._spared():
                return False
            endpoint.ejected = ejection
            self._sort()
        self._tell()
        self._on_eject(self, endpoint)
        return True

    def _spared(self) -> bool:
        """True when one more can be spared. Of several, one always can."""
        tiers, share = self.tiers, self.rules.share
        out = tiers.expected - len(tiers.prime)
        return share > 0 and tiers.expected > 1 and out < max(1, int(share * tiers.expected))

    def restore(self, endpoint: Endpoint, ejection: Ejection) -> None:
        """End this ``ejection`` of ``endpoint``: a probe reached it, or its time is up. An outlier is on probation: its next
        failure, if no good answer comes before it, has it judged again."""
        with self._lock:
            if endpoint.ejected is not ejection:
                return
            endpoint.ejected = None
            if ejection.reason is Reason.OUTLIER:
                endpoint.failures = self.rules.consecutive - 1
            else:
                endpoint.unmeasured()  # what it took while it was dying says nothing of it now
            self._sort()
        self._tell()

    def rest(self) -> None:
        """Nobody calls the service any more: idle connections are closed, and what was ejected is trusted again, so that
        nobody goes on probing it."""
        with self._lock:
            for endpoint in self._endpoints.values():
                endpoint.ejected = None
            self._sort()
            idle = [endpoint for endpoint in self._endpoints.values() if not endpoint.in_flight]
        self._tell()
        for endpoint in idle:
            self._on_drained(endpoint)

    def find(self, instance_id: str) -> Endpoint | None:
        """The endpoint of exactly this instance, whatever its status."""
        return self._endpoints.get(instance_id)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that are listed, whatever their status."""
        return tuple(self._endpoints.values())

    def watch(self, watcher: Watcher) -> None:
        """Have ``watcher.prepare()`` called now and after every change of the tiers, for as long as it lives."""
        with self._lock:
            self._watchers.add(watcher)
        watcher.prepare()

    def forked(self) -> None:
        """In a child process: a thread of the parent may have had the lock."""
        self._lock = lock()
        self.forget()

    def forget(self) -> None:
        """Forget calls in flight, and what calls have found out: nobody probes what was ejected."""
        with self._lock:
            self._outliers = Outliers(self.rules, self._clock())
            for endpoint in self._endpoints.values():
                endpoint.forget()
            self._sort()
        self._tell()

    def _sort(self) -> None:
        suspects = self.snapshot.suspects if self.snapshot else frozenset()
        self.tiers = sort(self._endpoints.values(), suspects, panic=self.rules.panic, memo=self._memo)

    def _tell(self) -> None:
        """Outside the lock: pickers are other people's code."""
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.prepare()
