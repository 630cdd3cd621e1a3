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


class PeakEwma:
    """The default: of two endpoints the one whose next answer is expected sooner: the moving average of its latency, which
    peaks at once and sinks slowly, times the attempts in flight, by its weight.

    The average forgets in ``decay`` seconds: one that was ten times as slow as its rivals is tried again after
    ``2.3 * decay``. One that nobody measured is judged by its attempts in flight alone: it is neither starved nor flooded.
    Failures count as latency doubled, so that quick errors attract nobody.

    Costs are kept as logarithms, of which the sinking is a straight line, the same for all: ``cost = ln(average / weight) +
    time / decay``. So two costs compare as they are, at any time, and a pick reads no clock. After Finagle's peak EWMA.
    """

    def __init__(self, *, decay: float = 10.0) -> None:
        if not (isinstance(decay, (int, float)) and 0 < decay < 86_400):
            raise ConfigError("PeakEwma(decay=)", f"{decay!r} is not a number of seconds below a day", example="decay=10.0")
        self._decay, self._step = decay, decay / 200

    def __call__(self, pool: Pool) -> Choose:
        if len(pool.endpoints) == 1:
            return only(pool)
        draw = pairs(pool.endpoints).__next__

        def choose(_call: Call) -> Endpoint:
            one, other = draw()
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
        if outcome is Outcome.ANSWERED:
            if seconds > endpoint.latency or now - endpoint.measured > self._step:
                self._learn(endpoint, seconds, now)
        elif outcome is Outcome.FAILED:
            self._learn(endpoint, max(seconds, min(2.0 * endpoint.latency * self._sunk(endpoint, now), WORST)), now)

    def _sunk(self, endpoint: Endpoint, now: float) -> float:
        return math.exp((endpoint.measured - now) / self._decay)

    def _learn(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        sunk = self._sunk(endpoint, now)
        latency = endpoint.latency * sunk  # as of now
        # A peak, or the first, is taken as it is.
        latency = max(seconds, QUICKEST) if seconds >= latency else latency + seconds * (1.0 - sunk)
        endpoint.latency, endpoint.measured = latency, now
        endpoint.cost = math.log(latency / (endpoint.instance.weight or 1)) + now / self._decay
