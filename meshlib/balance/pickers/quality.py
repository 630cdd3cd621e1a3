"""Best quality: the better of two by what they have taken lately."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

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
WORST = math.log(60.0)
"""Failures double the latency up to that of a minute."""


class PeakEwma:
    """The default: of two endpoints the one whose next answer is expected sooner: the moving average of its latency, which
    peaks at once and sinks slowly, times the attempts in flight, by its weight.

    The average forgets in ``decay`` seconds: one that was ten times as slow as its rivals is tried again after
    ``2.3 * decay``. One that nobody measured is judged by its attempts in flight alone: it is neither starved nor flooded.
    Failures count as latency doubled, so that quick errors attract nobody.

    Costs are kept as logarithms, of which the sinking is a straight line, the same for all: ``cost = ln(average / weight) +
    time / decay``. So two costs compare as they are, at any time, and a pick reads no clock. After Finagle's peak EWMA.
    """

    def __init__(self, *, decay: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        if not (isinstance(decay, (int, float)) and 0 < decay < 86_400):
            raise ConfigError("PeakEwma(decay=)", f"{decay!r} is not a number of seconds below a day", example="decay=10.0")
        self._decay, self._clock = decay, clock

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

    def observe(self, endpoint: Endpoint, seconds: float, outcome: Outcome) -> None:
        """See :class:`~meshlib.balance.pickers.base.Learner`. Two threads at once lose one of two measurements, which does
        no harm to an average."""
        if outcome is not Outcome.ANSWERED and outcome is not Outcome.FAILED:
            return
        now = self._clock()
        line = now / self._decay - math.log(endpoint.instance.weight or 1)
        sunk = endpoint.cost - line  # logarithm of the average as of now
        cost = math.log(max(seconds, QUICKEST))
        if sunk > cost:  # else it is a peak, or the first
            cost = math.log(math.exp(sunk) + seconds * -math.expm1((endpoint.measured - now) / self._decay))
        if outcome is Outcome.FAILED and sunk == sunk:  # noqa: PLR0124 - it is when it is a number: measured before
            cost = max(cost, min(sunk + math.log(2.0), WORST))
        endpoint.cost, endpoint.measured = cost + line, now
