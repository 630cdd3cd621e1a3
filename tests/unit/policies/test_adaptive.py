"""adaptive_concurrency: the estimate beside a naive model and in a simulator; the layer; whoever waits for a loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib import BulkheadFull, ConfigError, ConnectFailed, Overloaded, adaptive_concurrency
from meshlib.errors import AttemptTimeout
from meshlib.events import Event, Events
from meshlib.policies import lag
from meshlib.policies.base import Site
from meshlib.policies.gradient import PROBE, UNSURE, WARM_UP, Gradient
from meshlib.policies.limiter import SAMPLES, WINDOW
from meshlib.testing import FakeClock, Reply, play, run_virtual
from tests.unit.policies.simulated import Server


def naive(policy: Any, windows: list[tuple[float, float, bool]]) -> float:
    """The limit after ``windows``, told anew from the first on, as a story."""
    estimate, base, learned, full_on_end, patience, probing = float(policy.initial), 0.0, 0, 0, UNSURE, False
    for latency, most, full in windows:
        if probing:
            patience = UNSURE if latency < 0.8 * base else policy.long_window
            base, learned, probing, full_on_end = latency, WARM_UP, False, 0
            continue
        if not full or base == 0 or latency < base:
            learned += 1
            weight = 1 / learned if learned <= WARM_UP else 2 / (policy.long_window + 1)
            base = (1 - weight) * base + weight * latency
            base *= 0.9 if base > 2 * latency else 1.0
        if most >= estimate / 2:
            factor = policy.tolerance * base / latency
            aim = estimate * (0.5 if factor < 0.5 else min(factor, 1.0)) + policy.queue
            estimate += policy.smoothing * (aim - estimate)
            estimate = sorted((policy.least, estimate, policy.most))[1]
        full_on_end = full_on_end + 1 if full else 0
        probing = full_on_end >= patience
    return max(policy.least, estimate / PROBE) if probing else estimate


WINDOWS = st.tuples(st.floats(0.001, 1.0), st.floats(1, 200), st.booleans())


@given(st.lists(WINDOWS, max_size=80), st.integers(1, 20), st.integers(1, 30))
@settings(max_examples=300)
def test_in_lockstep_with_the_naive_model(windows: list[tuple[float, float, bool]], least: int, long: int) -> None:
    policy = adaptive_concurrency(least=least, most=100, long_window=long)
    gradient = Gradient(policy)
    for number, (latency, most, full) in enumerate(windows, 1):
        gradient.update(latency, most, full=full)
        assert gradient.limit == pytest.approx(naive(policy, windows[:number]), rel=1e-9)
        assert least <= gradient.limit <= 100


class Drifting(Gradient):
    """As it is written in Gradient2Limit.java: the average learns from all windows, and is never measured anew."""

    def update(self, latency: float, most: float, *, full: bool) -> None:
        super().update(latency, most, full=False)


class TestSimulated:
    @pytest.mark.parametrize(
        ("workers", "service", "least", "most"), [(1, 0.01, 1, 10), (4, 0.01, 4, 12), (20, 0.02, 20, 36), (80, 0.05, 80, 130)]
    )
    def test_it_finds_the_capacity(self, workers: int, service: float, least: float, most: float) -> None:
        """Of so many workers, offered five times what they can do. The best limit is their number."""
        server, capacity = Server(adaptive_concurrency()), workers / service
        server.load(capacity * 0.8, workers, seconds=2, service=service)
        seen = server.load(capacity * 5, workers, seconds=20, service=service)
        assert seen.goodput > 0.97 * capacity
        assert least <= seen.limit <= most

    def test_it_finds_it_when_it_begins_under_overload(self) -> None:
        server = Server(adaptive_concurrency())
        seen = server.load(500, 1, seconds=20)
        assert seen.goodput > 97
        assert seen.limit < 10

    def test_it_stays_there_for_long(self) -> None:
        server = Server(adaptive_concurrency())
        seen = server.load(500, 1, seconds=400)
        assert seen.goodput > 97
        assert seen.worst < 0.12

    def test_the_control_an_average_that_learns_the_queue(self) -> None:
        server = Server(adaptive_concurrency())
        server.limiter.gradient = Drifting(adaptive_concurrency())
        assert server.load(500, 1, seconds=400).worst > 0.2

    def test_it_recovers(self) -> None:
        """The load falls: nobody is refused any more; and rises again, to what was possible before."""
        server = Server(adaptive_concurrency())
        server.load(400, 4, seconds=5)
        server.load(2000, 4, seconds=20)
        assert server.load(200, 4, seconds=10).refused == 0
        assert server.load(2000, 4, seconds=20).goodput > 0.97 * 400

    def test_it_learns_that_work_has_become_slower_and_faster(self) -> None:
        server = Server(adaptive_concurrency())
        server.load(2000, 10, seconds=10)
        assert server.load(2000, 10, seconds=200, service=0.04).goodput > 0.97 * 250
        assert server.load(5000, 10, seconds=20).goodput > 0.97 * 1000

    def test_whom_it_need_not_bound(self) -> None:
        """A few callers, far below the limit, whose latency jumps: of a hundred in a second hardly any is refused, until that
        is what is normal."""
        server = Server(adaptive_concurrency())
        server.load(100, 50, seconds=5)
        assert server.load(100, 50, seconds=10, service=0.05).refused < 25
        assert server.load(100, 50, seconds=100, service=0.05).refused == 0


class Place:
    """The layer at one place."""

    def __init__(self, **options: Any) -> None:
        self.clock, events = FakeClock(), Events()
        self.seen: list[Event] = []
        events.listen(self.seen.append)
        self.layer: Any = adaptive_concurrency(**options).bind(Site(service="orders", clock=self.clock, events=events))
        self.limiter = self.layer.limiter

    def play(self, *script: Any) -> Any:
        return play([self.layer], script, clock=self.clock)


class TestLayer:
    def test_a_call_is_under_way_until_its_answer_is_closed(self) -> None:
        place = Place(initial=1)
        first = place.play(Reply())
        refused = place.play().error
        assert isinstance(refused, Overloaded)
        assert str(refused) == "1 calls of orders are under way, no more than 1.0 at once are good for them"
        assert place.seen == [
            Event("adaptive_concurrency.refused", "orders", "", {"limit": 1.0, "under_way": 1}),
        ]
        first.result.close()
        assert place.play(Reply()).status == 200

    @pytest.mark.parametrize(
        ("ends", "samples"),
        [
            (lambda: Reply(), 1),
            (lambda: Reply(404), 1),
            (lambda: Reply(500, seconds=0.001), 0),
            (lambda: Reply(500, seconds=9.0), 1),
            (lambda: Reply(429), 0),
            (lambda: Reply(503, headers={"retry-after": "1"}), 0),
            (lambda: ZeroDivisionError(), 0),
            (lambda: AttemptTimeout("too slow"), 0),
            (lambda: BulkheadFull("of a layer below"), 0),
            (lambda: ConnectFailed("refused"), 0),
            (lambda: asyncio.CancelledError(), 0),
            (lambda: GeneratorExit(), 0),
        ],
    )
    def test_what_tells_of_latency(self, ends: Any, samples: int) -> None:
        """What comes at once and is no answer does not; what fails late does."""
        place = Place()
        place.limiter.gradient.base = 0.01
        played = place.play(ends())
        if played.result is not None:
            played.result.close()
        assert len(place.limiter._latencies) == samples
        assert len(place.limiter) == 0, "whatever happens, it is given back"

    def test_slow_failures_do(self) -> None:
        place = Place()
        place.limiter.gradient.base = 0.01

        def slow(_call: Any) -> Any:
            place.clock.advance(5.0)
            raise ZeroDivisionError

        place.play(slow)
        assert place.limiter._latencies == [5.0]

    def test_who_was_begun_before_the_base_is_measured_anew_says_nothing(self) -> None:
        place = Place()
        first = place.limiter.take(0.0)
        place.limiter.gradient._probe()
        place.limiter.answered(first, Reply())
        place.limiter.answered(place.limiter.take(0.0), Reply())
        assert len(place.limiter._latencies) == 1

    def test_a_window_is_so_long_and_has_so_many(self) -> None:
        place = Place()
        for _ in range(SAMPLES):
            place.play(Reply(seconds=0.001)).result.close()
        assert place.limiter.gradient.short == 0.0
        place.clock.advance(WINDOW)
        place.play(Reply(seconds=0.001)).result.close()
        assert place.limiter.gradient.short == pytest.approx(0.001)
        assert place.limiter.fastest == pytest.approx(0.001)

    def test_in_a_child_process_nobody_is_under_way(self) -> None:
        place = Place(initial=1)
        held = place.play(Reply()).result
        place.limiter.forked()
        assert place.play(Reply()).status == 200
        held.close()
        assert len(place.limiter) == 1, "what the parent gives back is the parent's"

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"initial": 0}, "adaptive_concurrency(initial=) (from code): 0 is not a number from 1"),
            ({"initial": 5, "least": 6}, "5 is not between least=6 and most=200"),
            ({"most": 10}, "20 is not between least=1 and most=10"),
            ({"smoothing": 1.5}, "(smoothing=) (from code): 1.5 is not a number from 0.001 to 1"),
            ({"tolerance": 0.5}, "(tolerance=) (from code): 0.5 is not a number from 1 to 100"),
            ({"queue": True}, "(queue=) (from code): True is not"),
        ],
    )
    def test_bad_options(self, options: Any, said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            adaptive_concurrency(**options)
        assert said in str(caught.value)


class TestLag:
    """On a loop whose time is a number, and handlers that hold it up by moving that."""

    @staticmethod
    def blocked(*blocks: float) -> list[float]:
        clock, seen = FakeClock(), list[float]()

        async def main() -> None:
            for block in blocks:
                seen.append(round(lag.current(), 3))
                clock.advance(block)
                await asyncio.sleep(0 if block else lag.EVERY)
            seen.append(round(lag.current(), 3))

        run_virtual(main(), clock=clock)
        return seen

    def test_none_without_a_loop(self) -> None:
        assert lag.current() == 0.0

    def test_one_pause_is_no_queue(self) -> None:
        assert self.blocked(0.0, 0.0, 0.5, 0.0) == [0.0] * 5

    def test_a_loop_that_is_late_again_and_again(self) -> None:
        seen = self.blocked(*[0.1] * 8)
        assert seen[0] == 0.0
        assert all(0.03 <= late <= 0.2 for late in seen[4:]), seen

    def test_within_a_round_it_grows(self) -> None:
        clock = FakeClock()

        async def main() -> tuple[float, float]:
            lag.current()
            for _ in range(6):
                clock.advance(0.1)
                await asyncio.sleep(0)
                lag.current()
            before = lag.current()
            clock.advance(0.1)
            return before, lag.current()

        before, after = run_virtual(main(), clock=clock)
        assert after > before

    def test_it_is_over_after_a_while(self) -> None:
        assert self.blocked(*[0.1] * 5, *[0.0] * (2 * lag.CALM))[-1] == 0.0

    def test_nobody_looks_when_nobody_asks(self) -> None:
        clock = FakeClock()

        async def main() -> tuple[int, int]:
            lag.current()
            loop: Any = asyncio.get_running_loop()
            looking = len(loop._scheduled)
            await asyncio.sleep(lag.EVERY * 3 * lag.CALM)
            return looking, len(loop._scheduled)

        assert run_virtual(main(), clock=clock) == (1, 0)

    def test_those_who_wait_for_the_loop_are_counted(self) -> None:
        late = 0.0
        clock: Callable[[], float] = time.monotonic
        policy = adaptive_concurrency(initial=5)
        limiter = policy.limiter(Site(clock=clock))
        limiter.lag = lambda: late
        limiter.gradient.base = 0.01
        assert limiter.occupied(0.03) == pytest.approx(3.0)
        assert limiter.take(0.04) is not None
        assert limiter.take(0.04) is None, "one under way, and four who wait"

    def test_it_can_be_left_out(self) -> None:
        assert adaptive_concurrency(late=False).limiter(Site()).lag is not lag.current
        assert adaptive_concurrency().limiter(Site()).lag is lag.current
