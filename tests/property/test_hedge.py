"""Hedges against naive models: the quantile of a sample, and what a race comes to."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from meshlib.balance.layer import Balance
from meshlib.policies import hedge
from meshlib.policies.base import Site
from meshlib.policies.failover import Failover
from meshlib.policies.hedge import RENEWED, SAMPLE, Latencies
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import FakeSource, call_to, fleet, idle, in_turn

seconds = st.floats(0.0, 10.0)


@given(st.lists(seconds, min_size=1, max_size=600), st.floats(0.01, 0.99), st.integers(1, 50))
def test_the_quantile_of_the_last_ones(latencies: list[float], quantile: float, minimum: int) -> None:
    sample, wanted, log = Latencies(quantile, minimum), None, list[float]()
    for latency in latencies:
        sample.add(latency)
        log.append(latency)
        if len(log) >= minimum and (wanted is None or len(log) % RENEWED == 0):
            recent = sorted(log[-SAMPLE:])
            wanted = next(one for place, one in enumerate(recent, 1) if place >= quantile * len(recent))
        assert sample.value == wanted


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4), st.integers(1, 20), st.integers(2, 4))
def test_who_is_first_wins(durations: list[int], delay: int, attempts: int) -> None:
    """The n-th attempt begins after n delays, unless somebody has answered by then. In whole units: no rounding."""
    clock, known = FakeClock(0.0), fleet(*"abcd")
    policy = hedge(delay=float(delay), attempts=attempts, budget=None)
    replies = [Reply(seconds=float(one)) for one in durations]
    layers = [policy.bind(Site(clock=clock)), Failover(), Balance(FakeSource(known), in_turn, clock=clock)]
    played = play(layers, replies, call=call_to(), clock=clock)
    best, sent = math.inf, 0
    for number, duration in enumerate(durations[:attempts]):
        if best <= number * delay:
            break
        best, sent = min(best, number * delay + duration), sent + 1
    assert (played.elapsed, len(played.sent)) == (best, sent)
    assert len({call.endpoint for call in played.sent}) == sent, "each at another instance"
    assert [reply.closed for reply in replies[:sent]].count(False) == 1
    played.result.close()
    assert idle(known)
