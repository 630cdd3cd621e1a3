"""Retries against naive models: the budget in lockstep with a log, and a call's attempts with a loop that is plain to see."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlib.balance.layer import Balance
from meshlib.errors import AttemptTimeout, ConnectFailed, ConnectionLost
from meshlib.policies import RetryBudget, retry
from meshlib.policies.base import Site
from meshlib.policies.budget import WINDOW, Spending
from meshlib.policies.failover import Failover
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import FakeSource, call_to, fleet, idle, in_turn

SHARE, PER_SECOND = 0.2, 3


class BudgetMachine(RuleBasedStateMachine):
    """The model is two lists of whole seconds, of calls and of repetitions, which forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(100.5)
        self.spending = Spending(RetryBudget(share=SHARE, per_second=PER_SECOND), self.clock)
        self.calls: list[int] = []
        self.repeats: list[int] = []
        self.by_rate = 0

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.7, 9.0, 10.0, 11.0, 250.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(count=st.integers(1, 40))
    def call(self, count: int) -> None:
        for _ in range(count):
            self.spending.called(self.clock())
            self.calls.append(int(self.clock()))

    @rule(count=st.integers(1, 6))
    def repeat(self, count: int) -> None:
        for _ in range(count):
            now = int(self.clock())
            recent = [second for second in self.repeats if second > now - WINDOW]
            share = len(recent) + 1 <= SHARE * len([second for second in self.calls if second > now - WINDOW])
            rate = self.repeats.count(now) < PER_SECOND
            assert self.spending.take() is (share or rate)
            if share or rate:
                self.repeats.append(now)
                self.by_rate += not share

    @invariant()
    def never_more_than_both_together(self) -> None:
        seconds = len(set(self.repeats))
        assert len(self.repeats) <= SHARE * len(self.calls) + self.by_rate
        assert self.by_rate <= PER_SECOND * seconds


TestBudget = BudgetMachine.TestCase


def test_threads_take_no_more_than_there_is() -> None:
    """Calls that two threads count at once may count as one; what is taken never does."""
    clock = FakeClock()
    spending = Spending(RetryBudget(share=0.5, per_second=0), clock)
    taken: list[int] = []

    def work() -> None:
        for _ in range(2000):
            spending.called(clock())
        taken.append(sum(spending.take() for _ in range(2000)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(taken) <= 8000
    assert sum(taken) >= 7000, "and hardly any call is lost"


ENDS = ["ok", "busy", "bad", "refused", "lost", "slow"]


def end(name: str) -> Any:
    made = {"ok": 200, "busy": 503, "bad": 500}
    if name in made:
        return Reply(made[name])
    return {"refused": ConnectFailed, "lost": ConnectionLost, "slow": AttemptTimeout}[name](name)


def naive(script: list[str], method: str, attempts: int, instances: int) -> tuple[str, int]:
    """How a call ends and how many attempts it makes: each of the policy's has as many of failover as there are instances."""
    ends = iter(script)
    sent = 0
    alive = instances
    for number in range(1, attempts + 1):
        dead = last_resorts = 0
        while True:
            end, sent = next(ends), sent + 1
            if end != "refused":
                break
            # At once to the next one, as long as somebody is left: the healthy, then at most three of the dead.
            last_resorts += dead >= alive
            dead += 1
            if dead == instances or (dead >= alive and last_resorts >= 3):
                break
        alive = max(0, alive - min(dead, alive) - (end == "lost" and dead < alive))
        safe = end == "refused" or method == "GET"
        if end in ("ok", "bad") or not safe or number == attempts:
            return end, sent
    raise AssertionError


@given(
    st.lists(st.sampled_from(ENDS), min_size=40, max_size=40), st.sampled_from(["GET", "POST"]), st.integers(1, 5),
    st.integers(1, 4),
)  # fmt: skip
def test_a_call_in_lockstep(script: list[str], method: str, attempts: int, instances: int) -> None:
    clock, known = FakeClock(), fleet(*"abcd"[:instances])
    policy = retry(attempts, budget=None)
    site = Site(clock=clock, uniform=lambda: 0.5)
    layers = [policy.bind(site), Failover(), Balance(FakeSource(known), in_turn, clock=clock)]
    played = play(layers, [end(name) for name in script], call=call_to(method=method), clock=clock)
    how, sent = naive(script, method, attempts, instances)
    ending = {200: "ok", 503: "busy", 500: "bad"}[played.result.status] if played.result else str(played.error)
    assert (ending, len(played.sent)) == (how, sent)
    if played.result is not None:
        played.result.close()
    assert idle(known), "and nothing stays in flight"
    pauses = [0.5 * min(2.0, 0.05 * 2**number) for number in range(len(played.slept))]
    assert list(played.slept) == pauses
