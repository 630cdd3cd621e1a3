"""PeakEwma tries again whom one slow answer made look bad, and gives the truly slow no more than that."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers import PeakEwma, quality
from meshlib.balance.pickers.base import Choose
from meshlib.balance.tiers import Pool
from meshlib.outcome import Outcome
from tests.unit.flows import call_to, fleet, prime

ANSWERED, FAILED, PUSHBACK = Outcome.ANSWERED, Outcome.FAILED, Outcome.PUSHBACK
QUICK, COLD = 0.001, 0.045
"""Seconds: an answer, and the first one, which waits for a connection."""
START = 1000.0
Seconds = Callable[[int, int], float]
"""How long the answer of an endpoint takes, by its number and how many it has given before."""


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nobody is tried."""
    monkeypatch.setattr(quality, "LOOKS", 10**9)


def simulate(size: int, rate: float, seconds: float, takes: Seconds) -> list[list[int]]:
    """The calls that each of ``size`` endpoints got, second by second, when they come at random, ``rate`` in a second."""
    chance, picker, pool = random.Random(7), PeakEwma(), prime(fleet(*(f"i{number:03}" for number in range(size))))
    choose, numbers = picker(pool), {endpoint: number for number, endpoint in enumerate(pool.endpoints)}
    ends: list[tuple[float, int, Endpoint, float]] = []
    got, given = [[0] * size for _ in range(math.ceil(seconds))], Counter[Endpoint]()
    now, number = START + chance.expovariate(rate), 0
    while now < START + seconds:
        while ends and ends[0][0] <= now:
            end, attempt, endpoint, began = heapq.heappop(ends)
            endpoint.in_flight.discard(attempt)
            picker.observe(endpoint, end - began, ANSWERED, end)
        endpoint = choose(call_to())
        got[int(now - START)][numbers[endpoint]] += 1
        endpoint.in_flight.add(number)
        took = takes(numbers[endpoint], given[endpoint]) * chance.uniform(0.9, 1.1)
        given[endpoint] += 1
        heapq.heappush(ends, (now + took, number, endpoint, now))
        now, number = now + chance.expovariate(rate), number + 1
    return got


def cold_start(number: int, before: int) -> float:
    return COLD if number == 0 and before == 0 else QUICK


def share_of_the_first(got: list[list[int]], since: int) -> float:
    """As a multiple of what would be fair, from that second on."""
    return sum(each[0] for each in got[since:]) * len(got[0]) / sum(map(sum, got[since:]))


FLEETS = pytest.mark.parametrize(("size", "rate"), [(2, 85.0), (3, 85.0), (3, 1000.0), (10, 100.0), (10, 1000.0)])


@FLEETS
def test_one_that_started_cold_among_equals_has_its_share_within_three_seconds(size: int, rate: float) -> None:
    assert share_of_the_first(simulate(size, rate, 8.0, cold_start), since=3) > 0.7


@FLEETS
@pytest.mark.usefixtures("never")
def test_without_trials_it_is_starved(size: int, rate: float) -> None:
    assert share_of_the_first(simulate(size, rate, 8.0, cold_start), since=3) < 0.1


def test_a_pause_in_the_middle_is_forgotten_as_soon() -> None:
    got = simulate(3, 300.0, 10.0, lambda number, before: 0.2 if number == 0 and before == 200 else QUICK)
    paused = next(second for second, each in enumerate(got) if each[0] < 50)
    assert share_of_the_first(got, since=paused + 3) > 0.7


@pytest.mark.parametrize("rate", [20.0, 100.0, 1000.0])
def test_a_slow_one_gets_a_trickle(rate: float) -> None:
    seconds = 30.0
    got = [each[0] for each in simulate(5, rate, seconds, lambda number, _: 10 * QUICK if number == 0 else QUICK)]
    assert sum(got[1:]) <= min(seconds, rate * seconds / quality.LOOKS)
    assert sum(got[1:]) > 0


# -- one by one


@pytest.fixture
def picker() -> PeakEwma:
    return PeakEwma()


@pytest.fixture
def pool() -> Pool:
    return prime(fleet("slow", "usual"))


class Second:
    """Two seconds of a hundred calls each, to two endpoints of which the second answers in no time."""

    def __init__(self, picker: PeakEwma, pool: Pool) -> None:
        self.picker, self.now = picker, START
        self.slow, self.usual = sorted(pool.endpoints, key=lambda one: one.instance.id)
        self.choose: Choose = picker(pool)
        picker.observe(self.usual, QUICK, ANSWERED, self.now)

    def chosen(self, calls: int = 110, gap: float = 0.011) -> Counter[Endpoint]:
        """Who is, of so many; only the usual one answers."""
        counted: Counter[Endpoint] = Counter()
        for _ in range(calls):
            self.now += gap
            self.picker.observe(self.usual, QUICK, ANSWERED, self.now)
            counted[self.choose(call_to())] += 1
        return counted


@pytest.fixture
def second(picker: PeakEwma, pool: Pool) -> Second:
    made = Second(picker, pool)
    for _ in range(2):
        picker.observe(made.slow, COLD, ANSWERED, made.now)
    return made


def test_the_second_answer_replaces_the_first_and_the_third_counts_little(picker: PeakEwma, pool: Pool) -> None:
    endpoint = pool.endpoints[0]
    picker.observe(endpoint, COLD, ANSWERED, START)
    assert endpoint.latency == COLD
    picker.observe(endpoint, QUICK, ANSWERED, START + 0.001)
    assert endpoint.latency == QUICK
    picker.observe(endpoint, COLD, ANSWERED, START + 0.1)
    picker.observe(endpoint, QUICK, ANSWERED, START + 0.2)
    assert endpoint.latency == pytest.approx(COLD, rel=0.02)


def test_it_is_tried_once_in_a_hundred_calls_and_a_second(second: Second) -> None:
    assert second.chosen()[second.slow] == 1
    assert second.chosen(50)[second.slow] == 0


def test_of_many_calls_in_a_moment_none_is_a_trial(second: Second) -> None:
    assert second.chosen(5000, gap=0.0001)[second.slow] == 0
    assert second.chosen(6000, gap=0.0001)[second.slow] == 1


def test_nor_of_few_calls_in_a_long_time(second: Second) -> None:
    assert second.chosen(90, gap=0.2)[second.slow] == 0


def test_one_that_is_busy_is_not_idle(second: Second) -> None:
    second.slow.in_flight.add(1)
    assert second.chosen(500)[second.slow] == 0


def test_a_good_trial_clears_its_name(second: Second) -> None:
    second.chosen()
    second.picker.observe(second.slow, QUICK, ANSWERED, second.now)
    assert 40 <= second.chosen(100)[second.slow] <= 60


@pytest.mark.parametrize(("seconds", "outcome"), [(COLD, ANSWERED), (0.0001, FAILED), (0.0001, PUSHBACK)])
def test_a_bad_trial_does_not(second: Second, seconds: float, outcome: Outcome) -> None:
    second.chosen()
    second.picker.observe(second.slow, seconds, outcome, second.now)
    assert second.chosen(90)[second.slow] == 0


def test_changes_of_health_bring_no_more_trials(second: Second, pool: Pool) -> None:
    """Nor do choices made for one call that is repeated."""
    second.chosen()
    second.choose = second.picker(pool)
    assert second.chosen(90)[second.slow] == 0


def test_an_average_over_hours_is_measured_rarely(pool: Pool) -> None:
    """And is not taken for idle in between."""
    second = Second(PeakEwma(decay=3600.0), pool)
    for _ in range(2):
        second.picker.observe(second.slow, COLD, ANSWERED, second.now)
    assert second.chosen(500, gap=0.05)[second.slow] == 0
    assert second.chosen(500, gap=0.05)[second.slow] > 0
