"""PeakEwma: what it learns, whom it prefers, and how it compares with the real thing in a simulator."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers import PeakEwma, least_request, round_robin
from meshlib.balance.pickers.base import Picker
from meshlib.errors import ConfigError
from meshlib.outcome import Outcome
from meshlib.testing import FakeClock
from tests.unit.flows import call_to, fleet, instance, prime

ANSWERED, FAILED = Outcome.ANSWERED, Outcome.FAILED


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Clocked(PeakEwma):
    """With a clock of the test's."""

    def __init__(self, clock: FakeClock, **options: float) -> None:
        super().__init__(**options)
        self.clock = clock

    def observe(self, endpoint: Endpoint, seconds: float, outcome: Outcome, now: float | None = None) -> None:
        super().observe(endpoint, seconds, outcome, self.clock() if now is None else now)


@pytest.fixture
def picker(clock: FakeClock) -> Clocked:
    return Clocked(clock)


def average(endpoint: Endpoint, clock: FakeClock, decay: float = 10.0) -> float:
    """The average in seconds, as of now."""
    return math.exp(endpoint.cost - clock() / decay) * endpoint.instance.weight


class Naive:
    """Finagle's peak EWMA as one would write it down, sinking when it is read."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.cost, self.stamp = clock, 0.0, clock()

    def observe(self, seconds: float) -> None:
        weight = math.exp((self.stamp - self.clock()) / 10.0)
        sunk = self.cost * weight
        self.cost = seconds if seconds > sunk else sunk + seconds * (1 - weight)
        self.stamp = self.clock()


def test_the_average_is_that_of_the_naive_one(clock: FakeClock, picker: Clocked) -> None:
    chance = random.Random(1)
    endpoint, naive = prime(fleet("a")).endpoints[0], Naive(clock)
    for _ in range(500):
        seconds = chance.expovariate(20.0) + 1e-4
        picker.observe(endpoint, seconds, ANSWERED)
        naive.observe(seconds)
        assert average(endpoint, clock) == pytest.approx(naive.cost)
        clock.advance(0.06 + chance.expovariate(2.0))


def test_leaving_out_most_of_many_changes_little(clock: FakeClock, picker: Clocked) -> None:
    chance = random.Random(1)
    endpoint, naive = prime(fleet("a")).endpoints[0], Naive(clock)
    for number in range(20_000):
        seconds = chance.uniform(0.01, 0.02) * (3 if number == 5000 else 1)
        picker.observe(endpoint, seconds, ANSWERED)
        naive.observe(seconds)
        assert average(endpoint, clock) == pytest.approx(naive.cost, rel=0.1)
        clock.advance(0.001)


def test_it_peaks_at_once_and_sinks_slowly(clock: FakeClock, picker: Clocked) -> None:
    endpoint = prime(fleet("a")).endpoints[0]
    picker.observe(endpoint, 0.01, ANSWERED)
    picker.observe(endpoint, 1.0, ANSWERED)
    assert average(endpoint, clock) == pytest.approx(1.0)
    clock.advance(10.0)
    assert average(endpoint, clock) == pytest.approx(1 / math.e)


def test_the_slow_one_is_left_alone_until_it_is_forgotten(clock: FakeClock, picker: Clocked) -> None:
    pool = prime(fleet("a", "b"))
    slow, quick = pool.endpoints
    choose = picker(pool)
    picker.observe(slow, 0.1, ANSWERED)
    picker.observe(quick, 0.01, ANSWERED)
    assert {choose(call_to()) for _ in range(50)} == {quick}
    clock.advance(20.0)
    picker.observe(quick, 0.01, ANSWERED)
    assert {choose(call_to()) for _ in range(50)} == {quick}
    clock.advance(4.0)  # ten times as slow is 23 s of sinking
    picker.observe(quick, 0.01, ANSWERED)
    assert slow in {choose(call_to()) for _ in range(50)}


def test_between_equals_chance_decides(picker: Clocked) -> None:
    pool = prime(fleet("a", "b", "c"))
    for endpoint, seconds in zip(pool.endpoints, (0.030, 0.032, 0.034), strict=True):
        picker.observe(endpoint, seconds, ANSWERED)
    choose = picker(pool)
    assert Counter(choose(call_to()) for _ in range(600)) == dict.fromkeys(pool.endpoints, 200)


def test_attempts_in_flight_count_as_latency(picker: Clocked) -> None:
    pool = prime(fleet("a", "b"))
    slow, quick = pool.endpoints
    choose = picker(pool)
    picker.observe(slow, 0.030, ANSWERED)
    picker.observe(quick, 0.010, ANSWERED)
    quick.in_flight.add(1)
    assert {choose(call_to()) for _ in range(9)} == {quick}
    quick.in_flight |= {2, 3}
    assert {choose(call_to()) for _ in range(9)} == {slow}


def test_thousands_in_flight(picker: Clocked) -> None:
    pool = prime(fleet("a", "b"))
    for endpoint, busy in zip(pool.endpoints, (3000, 2000), strict=True):
        picker.observe(endpoint, 0.01, ANSWERED)
        endpoint.in_flight |= set(range(busy))
    assert {picker(pool)(call_to()) for _ in range(9)} == {pool.endpoints[1]}


def test_weights_are_shares_of_what_it_costs(picker: Clocked) -> None:
    pool = prime(fleet(instance("a", weight=4), "b"))
    strong, weak = pool.endpoints
    for endpoint in pool.endpoints:
        picker.observe(endpoint, 0.01, ANSWERED)
    choose = picker(pool)
    strong.in_flight |= {1, 2}
    assert {choose(call_to()) for _ in range(9)} == {strong}
    strong.in_flight |= {3, 4, 5, 6}
    assert {choose(call_to()) for _ in range(9)} == {weak}


def test_the_unmeasured_are_neither_starved_nor_flooded(picker: Clocked) -> None:
    pool = prime(fleet(*"abcdefghij"))
    new, *known = pool.endpoints
    for endpoint in known:
        picker.observe(endpoint, 0.01, ANSWERED)
    choose = picker(pool)
    idle = Counter(choose(call_to()) for _ in range(900))
    assert 0 < idle[new] <= 200, "one of ten that is as good as any has about a tenth"
    new.in_flight |= {1}
    assert new not in {choose(call_to()) for _ in range(900)}, "with one in flight it waits for what is said of it"


def test_failures_double_up_to_a_minute_and_attract_nobody(clock: FakeClock, picker: Clocked) -> None:
    endpoint = prime(fleet("a")).endpoints[0]
    picker.observe(endpoint, 0.01, FAILED)
    assert average(endpoint, clock) == pytest.approx(0.01)
    for _ in range(3):
        picker.observe(endpoint, 0.0001, FAILED)
    assert average(endpoint, clock) == pytest.approx(0.08)
    for _ in range(10_000):
        picker.observe(endpoint, 0.0001, FAILED)
    assert average(endpoint, clock) == pytest.approx(60.0)
    clock.advance(60.0)
    picker.observe(endpoint, 0.01, ANSWERED)
    assert average(endpoint, clock) < 0.2


@pytest.mark.parametrize("outcome", [Outcome.PUSHBACK, Outcome.NOTHING])
def test_what_says_nothing_is_not_counted(picker: Clocked, outcome: Outcome) -> None:
    endpoint = prime(fleet("a")).endpoints[0]
    picker.observe(endpoint, 1.0, outcome)
    assert math.isnan(endpoint.cost)
    assert endpoint.latency == 0.0


def test_an_answer_in_no_time(picker: Clocked, clock: FakeClock) -> None:
    endpoint = prime(fleet("a")).endpoints[0]
    picker.observe(endpoint, 0.0, ANSWERED)
    assert average(endpoint, clock) == pytest.approx(1e-6)


@pytest.mark.parametrize("decay", [0, -1, "10", float("nan")])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"PeakEwma\(decay=\).*decay=10.0"):
        PeakEwma(decay=decay)


# -- the simulator: calls arrive at random, an endpoint works on one at a time, as long as its speed says


def simulate(choosing: Callable[[FakeClock], Picker | Callable[[list[Endpoint]], Endpoint]], speeds: list[float], *,
             load: float, calls: int = 20_000) -> float:  # fmt: skip
    """Mean seconds from arrival to answer; ``speeds`` are mean seconds of work of each, ``load`` the share of what all
    together could do."""
    chance, clock = random.Random(7), FakeClock()
    known = fleet(*(f"i{number:03}" for number in range(len(speeds))))
    pool, picker = prime(known), choosing(clock)
    choose = picker(pool) if not isinstance(picker, Drawn) else lambda _: picker.choose(list(pool.endpoints), chance)
    observe = getattr(picker, "observe", lambda *_: None)
    free = dict.fromkeys(pool.endpoints, clock())
    speed = dict(zip(pool.endpoints, speeds, strict=True))
    gap = 1 / (load * sum(1 / each for each in speeds))
    ends: list[tuple[float, int, Endpoint, float]] = []
    took = 0.0
    now = start = clock()
    for number in range(calls):
        now += chance.expovariate(1 / gap)
        while ends and ends[0][0] <= now:
            end, attempt, endpoint, arrived = heapq.heappop(ends)
            clock.advance(end - clock())
            endpoint.in_flight.discard(attempt)
            observe(endpoint, end - arrived, ANSWERED)
        clock.advance(now - clock())
        endpoint = choose(call_to())
        endpoint.in_flight.add(number)
        free[endpoint] = max(free[endpoint], now) + chance.expovariate(1 / speed[endpoint])
        heapq.heappush(ends, (free[endpoint], number, endpoint, now))
        took += free[endpoint] - now
    assert clock() > start
    return took / calls


class Drawn:
    """The real thing, by lot each time: two of all, the one with less in flight."""

    def choose(self, endpoints: list[Endpoint], chance: random.Random) -> Endpoint:
        return min(chance.sample(endpoints, 2), key=lambda one: len(one.in_flight))


def test_the_dealt_pairs_are_as_good_as_drawn_ones() -> None:
    """Against a simulator of the power of two choices; one choice (the control) is far worse."""
    equal = [0.01] * 50
    dealt, drawn = (simulate(lambda _clock, p=p: p, equal, load=0.9) for p in (least_request, Drawn()))
    alone = simulate(lambda _clock: round_robin, equal, load=0.9)
    assert dealt <= 1.05 * drawn
    assert alone > 1.5 * drawn


def test_of_unequal_instances_the_better_get_more() -> None:
    unequal = [0.01] * 14 + [0.1] * 6
    best = simulate(lambda clock: Clocked(clock), unequal, load=0.5)
    blind = simulate(lambda _clock: round_robin, unequal, load=0.5)
    assert best < 0.1, best
    assert blind > 10 * best


def test_every_endpoint_is_dealt_as_often_as_any_other() -> None:
    pool = prime(fleet(*(f"i{number:02}" for number in range(30))))
    from meshlib.balance.pickers.plain import pairs

    dealt = list(itertools.islice(pairs(pool.endpoints), 30 * 29))
    assert all(one is not other for one, other in dealt)
    assert Counter(one for one, _ in dealt) == dict.fromkeys(pool.endpoints, 29)
    assert Counter(other for _, other in dealt) == dict.fromkeys(pool.endpoints, 29)
    assert len(set(dealt)) == 30 * 29, "each meets each"
