"""Best quality: the better of two by what they have taken lately."""

from __future__ import annotations

import math

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers.base import Choose
from meshlib.balance.pickers.plain import only, pairs
from meshlib.balance.tiers import Pool
from meshlib.errors import ConfigError
from meshlib.flow import Call
from meshlib.outcome import Outcome

BUSY = tuple(math.log(number) for number in range(1, 1025))
"""``BUSY[n]``: the logarithm of ``n`` attempts in flight and the one to come."""
QUICKEST = 1e-6
"""Seconds that no answer is said to have taken less than: logarithms end at zero."""
EQUAL = math.log(1.25)
"""A quarter more or less is noise: between such two, chance decides. Else the last of several equals would never be called."""
WORST = 60.0
"""Seconds up to which failures double the latency."""
IDLE = 1.0
"""Seconds after which nobody knows any more what an endpoint takes."""
LOOK = 0.01
"""Seconds from one look for such endpoints to the next."""
LOOKS = 100
"""How many looks, and so picks, lie between two that go to such an endpoint: at most one in a second, and one in a hundred."""


class Trials:
    """Whose turn it is to be tried again: of the two that are dealt the one that nobody has measured for longer, if that is
    long ago and it has nothing to do. What ``now`` is, the last measurement has said."""

    __slots__ = ("_idle", "_looks", "due")

    def __init__(self, idle: float) -> None:
        self._idle, self._looks, self.due = idle, 0, 0.0

    def look(self, one: Endpoint, other: Endpoint, now: float) -> Endpoint | None:
        """One of the two, now and then, and its next measurement is taken as it is."""
        self.due = now + LOOK
        self._looks += 1  # two threads at once may lose one
        endpoint = one if one.measured < other.measured else other
        if self._looks <= LOOKS or endpoint.in_flight or now - endpoint.measured < self._idle:
            return None
        self._looks, endpoint.provisional = 0, True
        return endpoint


class PeakEwma:
    """The default: of two endpoints the one whose next answer is expected sooner: the moving average of its latency, which
    peaks at once and sinks slowly, times the attempts in flight, by its weight.

    The average forgets in ``decay`` seconds: one that was ten times as slow as its rivals is tried again after
    ``2.3 * decay``. One that nobody measured is judged by its attempts in flight alone: it is neither starved nor flooded.
    Failures count as latency doubled, so that quick errors attract nobody.

    One slow answer (a connection made, a pause) would starve an endpoint that is as quick as any for as long. So one that has
    not been measured for a second is tried once, if nobody else was in that second and the hundred calls before: what it
    takes then counts in place of all that was. So does its second answer: the first one paid for connecting.

    Costs are kept as logarithms, of which the sinking is a straight line, the same for all: ``cost = ln(average / weight) +
    time / decay``. So two costs compare as they are, at any time, and a pick reads no clock. After Finagle's peak EWMA.
    """

    def __init__(self, *, decay: float = 10.0) -> None:
        if not (isinstance(decay, (int, float)) and 0 < decay < 86_400):
            raise ConfigError("PeakEwma(decay=)", f"{decay!r} is not a number of seconds below a day", example="decay=10.0")
        self._decay, self._step = decay, decay / 200
        self._now = 0.0
        """When the last attempt ended: what a pick takes for the time."""

    def __call__(self, pool: Pool) -> Choose:
        if len(pool.endpoints) == 1:
            return only(pool)
        draw = pairs(pool.endpoints).__next__
        trials: Trials = pool.memo.setdefault(self, Trials(max(IDLE, 2 * self._step)))

        def choose(_call: Call) -> Endpoint:
            one, other = draw()
            if self._now > trials.due and (tried := trials.look(one, other, self._now)):
                return tried
            try:
                mine, theirs = one.cost + BUSY[len(one.in_flight)], other.cost + BUSY[len(other.in_flight)]
            except IndexError:
                return one if len(one.in_flight) <= len(other.in_flight) else other
            if mine <= theirs + EQUAL:
                return one
            if mine > theirs:
                return other
            return one if len(one.in_flight) <= len(other.in_flight) else other  # one of them is not a number: unmeasured

        return choose

    def observe(self, endpoint: Endpoint, seconds: float, outcome: Outcome, now: float) -> None:
        """See :class:`~meshlib.balance.pickers.base.Learner`. Two threads at once lose one of two measurements, which does
        no harm to an average. Nor does leaving out what comes within a two-hundredth of ``decay`` after another, and is no
        peak: most calls of a busy client pay for no logarithm."""
        self._now = now
        if outcome is Outcome.ANSWERED:
            if seconds > endpoint.latency or now - endpoint.measured > self._step or endpoint.provisional:
                self._learn(endpoint, seconds, now)
        elif outcome is Outcome.FAILED:
            self._learn(endpoint, max(seconds, min(2.0 * endpoint.latency * self._sunk(endpoint, now), WORST)), now)

    def _sunk(self, endpoint: Endpoint, now: float) -> float:
        return math.exp((endpoint.measured - now) / self._decay)

    def _learn(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        sunk = self._sunk(endpoint, now)
        latency = endpoint.latency * sunk  # as of now
        # A peak, the first, and what follows the first or a long pause, is taken as it is.
        as_it_is = seconds >= latency or endpoint.provisional
        latency = max(seconds, QUICKEST) if as_it_is else latency + seconds * (1.0 - sunk)
        endpoint.latency, endpoint.measured, endpoint.provisional = latency, now, math.isnan(endpoint.cost)
        endpoint.cost = math.log(latency / (endpoint.instance.weight or 1)) + now / self._decay
