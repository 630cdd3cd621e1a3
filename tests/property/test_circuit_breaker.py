"""The circuit breaker in lockstep with one that remembers everything, and under threads and tasks at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib import CircuitOpen, ConnectFailed, circuit_breaker
from meshlib.events import Events
from meshlib.flow import Call, arun, compose, run, send
from meshlib.policies.base import Site
from meshlib.policies.breaker_window import TICKS
from meshlib.testing import FakeClock
from tests.unit.flows import Answer, AsyncScript, Script, call_to

# A tick of the window is one second, and time goes by quarters: all sums are exact.
WINDOW, UNIT = float(TICKS), 0.25


class Model:
    """A list of all ends, and the rules as they are written."""

    def __init__(self, policy: circuit_breaker) -> None:
        self.policy, self.state, self.epoch = policy, "closed", 0
        self.ends: list[tuple[float, bool, bool]] = []
        self.until, self.rounds = 0.0, 0
        self.probes: dict[int, float] = {}

    def counted(self, now: float) -> list[tuple[float, bool, bool]]:
        if self.policy.calls is not None:
            return self.ends[-self.policy.calls :]
        # An end counts for the window, and until the tick in which that is over has ended, too.
        return [end for end in self.ends if int(now) - int(end[0]) <= TICKS]

    def ask(self, name: int, now: float) -> bool:
        if self.state == "open" and now >= self.until:
            self.turn("half-open")
        if self.state == "half-open":
            self.probes = {probe: end for probe, end in self.probes.items() if end > now}
            if len(self.probes) + len(self.ends) >= self.policy.probes:
                return False
            self.probes[name] = now + self.policy.probe_for
        return self.state != "open"

    def turn(self, state: str) -> None:
        self.state, self.ends, self.probes = state, [], {}
        self.epoch += 1

    def tell(self, name: int, epoch: int, now: float, end: tuple[bool, bool] | None) -> None:
        if epoch != self.epoch or (self.state == "half-open" and self.probes.pop(name, None) is None) or end is None:
            return
        self.ends.append((now, *end))
        if self.state == "closed":
            ends = self.counted(now)
            if len(ends) >= self.policy.minimum and self.too_many(ends, len(ends)):
                self.open(now, 0)
        elif self.too_many(self.ends, self.policy.probes):
            self.open(now, self.rounds + 1)
        elif len(self.ends) == self.policy.probes:
            self.turn("closed")

    def open(self, now: float, rounds: int) -> None:
        self.rounds = rounds
        seconds = self.policy.open_for
        for _ in range(rounds):
            seconds = min(self.policy.longest, seconds * self.policy.growth)
        self.until = now + seconds
        self.turn("open")

    def too_many(self, ends: list[tuple[float, bool, bool]], of: int) -> bool:
        failed, slow = sum(end[1] for end in ends), sum(end[2] for end in ends)
        return failed / of >= self.policy.failure_rate or slow / of >= self.policy.slow_rate


POLICIES = st.builds(
    circuit_breaker,
    failure_rate=st.sampled_from([0.25, 0.5, 0.7, 1.0]),
    slow=st.just(2.0),
    slow_rate=st.sampled_from([0.5, 1.0]),
    window=st.just(WINDOW),
    calls=st.sampled_from([None, None, 6, 9]),
    minimum=st.integers(1, 6),
    open_for=st.just(4.0),
    longest=st.sampled_from([4.0, 12.0, 60.0]),
    probes=st.integers(1, 4),
    probe_for=st.sampled_from([5.0, 30.0]),
)
FATES = ["good", "good", "good", "failed", "failed", "nothing"]
STEPS = st.lists(
    st.tuples(st.sampled_from(["call", "call", "end", "end", "wait"]), st.integers(0, 40), st.sampled_from(FATES)), max_size=150
)


class Pair:
    """The layer and its model, with the calls that are under way in both."""

    def __init__(self, policy: circuit_breaker) -> None:
        self.clock = FakeClock()
        self.layer: Any = policy.bind(Site(clock=self.clock))
        self.model = Model(policy)
        self.flows: dict[int, tuple[Any, int, float]] = {}
        self.most = 0

    def begin(self, name: int) -> None:
        flow = self.layer(call_to(), send)
        passed = True
        try:
            next(flow)
        except CircuitOpen as refused:
            passed = False
            if refused.retry_after is not None:
                assert self.clock() + refused.retry_after == self.model.until
        assert passed == self.model.ask(name, self.clock())
        if passed:
            self.flows[name] = (flow, self.model.epoch, self.clock())

    def end(self, which: int, fate: str) -> None:
        name = sorted(self.flows)[which % len(self.flows)]
        flow, epoch, begun = self.flows.pop(name)
        now = self.clock()
        self.model.tell(name, epoch, now, None if fate == "nothing" else (fate == "failed", now - begun >= 2.0))
        if fate == "nothing":
            flow.close()
            return
        with suppress(StopIteration):
            flow.send(Answer(500 if fate == "failed" else 200))

    def compare(self) -> None:
        condition, model = self.layer.breaker.condition, self.model
        assert condition.state == model.state
        if model.state == "open":
            return
        ends = model.counted(self.clock())
        counts = (len(ends), sum(end[1] for end in ends), sum(end[2] for end in ends))
        assert (condition.counts.calls, condition.counts.failures, condition.counts.slow) == counts


@given(POLICIES, STEPS, st.booleans())
@settings(max_examples=400)
def test_in_lockstep(policy: circuit_breaker, steps: list[tuple[str, int, str]], looking: bool) -> None:
    """``looking``: somebody looks at it after each step, which must not change what it does."""
    pair = Pair(policy)
    for name, (step, number, fate) in enumerate(steps):
        if step == "call":
            pair.begin(name)
        elif step == "end" and pair.flows:
            pair.end(number, fate)
        elif step == "wait":
            pair.clock.advance(number * UNIT)
        if looking:
            pair.compare()
    pair.compare()


@pytest.mark.parametrize("seed", range(12))
def test_in_lockstep_for_long(seed: int) -> None:
    """Thousands of steps, where what leaves the window matters."""
    chance = random.Random(seed)
    pair = Pair(
        circuit_breaker(
            chance.choice([0.3, 0.5]), slow=2.0, slow_rate=chance.choice([0.5, 1.0]), window=WINDOW,
            calls=chance.choice([None, None, 15]), minimum=chance.choice([3, 8]), probes=chance.choice([1, 3]),
        )
    )  # fmt: skip
    opened = 0
    for name in range(2500):
        bad = 0.2 if name % 500 < 400 else 0.6
        step = chance.random()
        if step < 0.42:
            pair.begin(name)
        elif step < 0.84 and pair.flows:
            pair.end(chance.randrange(100), chance.choices(["good", "failed", "nothing"], [1 - bad, bad, 0.1])[0])
        else:
            pair.clock.advance(chance.choice([0.25, 0.5, 1.0, 4.0]))
        opened += pair.model.state == "open"
        if not name % 50:
            pair.compare()
    assert opened


def test_the_model_is_not_the_same_with_other_rules() -> None:
    """The negative control: a model with another rule is told from the layer at once."""
    pair = Pair(circuit_breaker(minimum=2, window=WINDOW))
    pair.model.policy = circuit_breaker(minimum=3, window=WINDOW)
    for name in range(2):
        pair.begin(name)
        pair.end(0, "failed")
    with pytest.raises(AssertionError):
        pair.compare()


@pytest.fixture
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


THREADS, TASKS, CALLS = 8, 60, 60


class Storm:
    """Callers in threads and in tasks, of which some are cancelled, of what is down now and then."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.events = Events()
        rule = circuit_breaker(minimum=5, window=0.2, open_for=0.001, longest=0.002, probes=3, **options)
        reads = itertools.count()  # time goes by with the calls, however busy the machine
        self.layer: Any = rule.bind(Site(events=self.events, clock=lambda: next(reads) * 1e-4))
        self.proceed = compose([self.layer])
        self.chance = random.Random(seed)
        self.problems: list[BaseException] = []

    def script(self) -> Script:
        down = self.chance.random() < 0.4
        return Script(ConnectFailed if self.chance.random() < 0.1 else Answer(500 if down else 200))

    def call(self) -> None:
        with suppress(CircuitOpen, ConnectFailed):
            run(self.proceed, call_to(), self.script())

    def thread(self) -> None:
        try:
            for _ in range(CALLS):
                self.call()
        except BaseException as problem:
            self.problems.append(problem)

    async def task(self) -> None:
        for _ in range(CALLS // 6):
            with suppress(CircuitOpen, ConnectFailed):
                await arun(self.proceed, call_to(), AsyncScript(self.script()))

    def lively(self) -> bool:
        """Whether the circuit has gone through all states, and more than once."""
        counts = self.events.counts()
        return all(counts.get((f"circuit_breaker.{what}", "", ""), 0) > 1 for what in ("opened", "closed", "refused"))

    async def tasks(self) -> None:
        tasks = [asyncio.create_task(self.task()) for _ in range(TASKS)]
        for task in tasks[::3]:
            await asyncio.sleep(0)
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if end is not None and not isinstance(end, asyncio.CancelledError):
                self.problems.append(end)

    def blow(self) -> None:
        threads = [threading.Thread(target=self.thread) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        asyncio.run(self.tasks())
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("options", [{}, {"calls": 20}, {"slow": 0.05}])
def test_a_storm(switching: None, options: dict[str, Any]) -> None:
    storm = Storm(7, **options)
    for _ in range(20):  # who meets what is down, and when, is chance
        storm.blow()
        if storm.lively():
            break
    assert not storm.problems
    assert storm.lively()
    breaker = storm.layer.breaker
    breaker.close()
    for _ in range(20):
        run(compose([storm.layer]), call_to(), Script(Answer()))
    assert (breaker.state, breaker.condition.counts.calls) == ("closed", 20)


def test_no_failure_is_lost_between_threads(switching: None) -> None:
    layer: Any = circuit_breaker(minimum=100_000, window=3600.0).bind(Site())
    proceed = compose([layer])

    def work(status: int) -> None:
        for _ in range(300):
            run(proceed, call_to(), Script(Answer(status)))

    threads = [threading.Thread(target=work, args=(500 if number % 2 else 200,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = layer.breaker.condition.counts
    assert counts.failures == THREADS // 2 * 300
    assert THREADS * 297 <= counts.calls <= THREADS * 300, "good ones are counted without a lock"


@pytest.mark.parametrize("probes", [1, 3])
def test_threads_and_a_half_open_circuit(switching: None, probes: int) -> None:
    """However many come at once: never more than allowed, in each of many rounds; and none of their places is lost."""
    clock = FakeClock()
    layer: Any = circuit_breaker(minimum=1, probes=probes, growth=1.0, open_for=1.0).bind(Site(clock=clock))
    proceed = compose([layer])
    inside, barrier = list[int](), threading.Barrier(THREADS)

    class Failing(Script):
        def send(self, call: Call) -> Any:
            inside.append(1)
            together.wait(60)
            return Answer(500)

    def work(sender: Any) -> None:
        barrier.wait(60)
        with suppress(CircuitOpen):
            run(proceed, call_to(), sender)

    run(proceed, call_to(), Script(Answer(500)))
    for _ in range(20):
        clock.advance(1.0)
        inside.clear()
        together = threading.Barrier(probes)
        threads = [threading.Thread(target=work, args=(Failing(),)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(inside) == probes
        assert layer.breaker.state == "open"
