"""The states of a circuit. A state is an object, swapped whole.

Who is let through gets a permit of the state that let him, and tells that: when it is not the state any more, nobody hears
it. So a late answer never closes what was opened meanwhile, without any number to compare.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from meshlib.policies.breaker_window import Counts
from meshlib.threads import lock

if TYPE_CHECKING:
    from meshlib.policies.breaker import Breaker


class Permit(Protocol):
    """For one call that was let through. Tell it once how the call ended."""

    def good(self) -> None:
        """It worked, in time."""
        ...

    def bad(self, failed: bool, slow: bool) -> None:
        """It failed, or was slow, or both."""
        ...

    def nothing(self) -> None:
        """It says nothing: refused by ourselves, cancelled."""
        ...


Entry: TypeAlias = tuple[Permit | None, float | None]
"""A permit, or None and the seconds after which there may be one (None: nobody knows)."""


class _Free:
    """A permit that need not be given back."""

    def nothing(self) -> None:
        """See :class:`Permit`."""


class Closed(_Free):
    """All pass, and are counted."""

    name: ClassVar[str] = "closed"
    passes: ClassVar[bool] = True

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._window = breaker.policy.new_window(breaker.clock)
        self._good = self._window.good
        self.counts, self.forked = self._window.counts, self._window.forked

    def enter(self, now: float) -> Entry:  # noqa: ARG002 - whenever
        """See :meth:`meshlib.policies.breaker.Breaker.enter`."""
        return self, 0.0

    def good(self) -> None:
        """See :class:`Permit`."""
        if self._good():
            self._judge()

    def bad(self, failed: bool, slow: bool) -> None:
        """See :class:`Permit`."""
        self._window.bad(failed, slow)
        self._judge()

    def _judge(self) -> None:
        counts = self._window.judged()
        if self._breaker.policy.too_bad(counts):
            self._breaker.to_open(self, 0, counts)


class Disabled(_Free):
    """All pass, nobody counts."""

    name: ClassVar[str] = "disabled"
    passes: ClassVar[bool] = True

    def enter(self, now: float) -> Entry:  # noqa: ARG002
        """See :meth:`meshlib.policies.breaker.Breaker.enter`."""
        return self, 0.0

    def good(self) -> None:
        """See :class:`Permit`."""

    def bad(self, failed: bool, slow: bool) -> None:
        """See :class:`Permit`."""

    def counts(self) -> Counts:
        """Nothing is counted."""
        return Counts()

    def forked(self) -> None:
        """There is nothing to begin anew."""


class Open:
    """None pass before ``until``; ``rounds`` of probes have failed since it opened first. ``held``: by hand."""

    name: ClassVar[str] = "open"
    passes: ClassVar[bool] = False

    def __init__(self, breaker: Breaker, until: float, rounds: int, counts: Counts, *, held: bool = False) -> None:
        self._breaker, self.until, self.rounds, self.held = breaker, until, rounds, held
        self.opened_at = breaker.site.wall()
        self._counts = counts

    def enter(self, now: float) -> Entry:
        """See :meth:`meshlib.policies.breaker.Breaker.enter`."""
        if now >= self.until:
            return self._breaker.to_half_open(self).enter(now)
        return None, None if self.until == math.inf else self.until - now

    def counts(self) -> Counts:
        """What it was opened for."""
        return self._counts

    def forked(self) -> None:
        """Nobody is under way here."""


class HalfOpen:
    """So many probes pass, and are judged by the same rates. One that is not told for ``probe_for`` seconds is given up:
    another one may take its place, and it is not heard any more."""

    name: ClassVar[str] = "half-open"
    passes: ClassVar[bool] = False

    def __init__(self, breaker: Breaker, rounds: int) -> None:
        self._breaker, self.rounds = breaker, rounds
        self._calls = self._failures = self._slow = 0
        self.forked()

    def forked(self) -> None:
        """In a child process (and at first): the probes under way are the parent's."""
        self._lock = lock()
        self._under_way: dict[Probe, float] = {}

    def enter(self, now: float) -> Entry:
        """See :meth:`meshlib.policies.breaker.Breaker.enter`."""
        policy = self._breaker.policy
        with self._lock:
            for probe, end in list(self._under_way.items()):
                if end <= now:
                    self.forget(probe)
            if self._calls + len(self._under_way) >= policy.probes:
                return None, None
            probe = Probe(self)
            self._under_way[probe] = now + policy.probe_for
        return probe, 0.0

    def forget(self, probe: Probe) -> bool:
        """``probe`` is not under way any more; whether it was. No lock: an abandoned flow is collected in any thread, which may
        hold it."""
        return self._under_way.pop(probe, None) is not None

    def told(self, probe: Probe, failed: bool, slow: bool) -> None:
        """How ``probe`` ended."""
        with self._lock:
            if not self.forget(probe):
                return
            self._calls += 1
            self._failures += failed
            self._slow += slow
            counts = self.counts()
        policy = self._breaker.policy
        if policy.too_many(Counts(policy.probes, counts.failures, counts.slow)):  # whatever the others say
            self._breaker.to_open(self, self.rounds + 1, counts)
        elif counts.calls == policy.probes:
            self._breaker.to_closed(self)

    def counts(self) -> Counts:
        """Of the probes that ended."""
        return Counts(self._calls, self._failures, self._slow)


class Probe:
    """The permit of one call through a half-open circuit."""

    __slots__ = ("_round",)

    def __init__(self, round_: HalfOpen) -> None:
        self._round = round_

    def good(self) -> None:
        """See :class:`Permit`."""
        self._round.told(self, False, False)

    def bad(self, failed: bool, slow: bool) -> None:
        """See :class:`Permit`."""
        self._round.told(self, failed, slow)

    def nothing(self) -> None:
        """See :class:`Permit`."""
        self._round.forget(self)


Phase: TypeAlias = Closed | Open | HalfOpen | Disabled
