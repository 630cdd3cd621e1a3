"""Outliers: who is judged to be one, and what becomes of it. Everything against the other instances."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from meshlib.balance.endpoint import Ejection, Endpoint, Reason
from meshlib.balance.fleet import Fleet
from meshlib.balance.outliers import LONGEST, Outliers, Rules
from meshlib.errors import AttemptTimeout, ConfigError
from meshlib.flow import run
from meshlib.outcome import Outcome
from meshlib.testing import FakeClock
from tests.unit.flows import Answer, Script, call_to, fleet, governed, update


class World:
    """A fleet whose results come from a table, judged when it is due."""

    def __init__(self, *names: str, **rules: Any) -> None:
        self.clock = FakeClock()
        self.ejected: list[str] = []
        self.due = 0
        self.fleet = fleet(*(names or "abcde"), rules=Rules(**rules), clock=self.clock, on_eject=self._note, on_due=self._due)

    def _note(self, _fleet: Fleet, endpoint: Endpoint) -> None:
        self.ejected.append(endpoint.instance.id)

    def _due(self, known: Fleet) -> None:
        self.due += 1
        known.judge()

    def __getitem__(self, name: str) -> Endpoint:
        found = self.fleet.find(name)
        assert found is not None
        return found

    def results(self, **results: Iterable[float | None]) -> None:
        """For each endpoint its results in turn: seconds of an answer, or None for a failure; one round takes 0.1 s."""
        rounds = {name: list(each) for name, each in results.items()}
        for number in range(max(map(len, rounds.values()))):
            for name, each in rounds.items():
                if number < len(each):
                    seconds = each[number]
                    outcome = Outcome.FAILED if seconds is None else Outcome.ANSWERED
                    self.fleet.told(self[name], 0.01 if seconds is None else seconds, outcome, self.clock())
            self.clock.advance(0.1)

    def well(self, names: str, times: int = 30) -> dict[str, list[float | None]]:
        return {name: [0.01] * times for name in names}


def test_all_well() -> None:
    world = World()
    world.results(**world.well("abcde", 200))
    assert world.ejected == []
    assert world.due > 10


def test_failures_in_a_row() -> None:
    world = World()
    world.results(**world.well("bcde"), a=[0.01, *[None] * 5])
    assert world.ejected == ["a"]
    assert world["a"].ejected is not None
    assert world["a"].ejected.reason is Reason.OUTLIER


def test_four_in_a_row_are_not_five() -> None:
    world = World()
    world.results(**world.well("bcde"), a=[0.01, *[None] * 4, *[0.01] * 25])
    assert world.ejected == []


def test_every_other_one() -> None:
    world = World()
    world.results(**world.well("bcde", 60), a=[0.01, None] * 30)
    assert world.ejected == ["a"]


def test_one_in_fifty_is_no_outlier() -> None:
    world = World()
    world.results(**world.well("bcde", 300), a=([0.01] * 49 + [None]) * 6)
    assert world.ejected == []


def test_when_all_fail_none_is_to_blame() -> None:
    world = World()
    world.results(**{name: [None] * 100 for name in "abcde"})
    assert world.ejected == []
    world.results(**{name: [None, 0.01] * 50 for name in "abcde"})
    assert world.ejected == []


def test_a_slow_one() -> None:
    world = World()
    world.results(**world.well("bcde", 40), a=[0.1] * 40)
    assert world.ejected == ["a"]


def test_one_that_becomes_slow_is_seen_at_once_however_long_it_was_well() -> None:
    world = World()
    world.results(**world.well("abcde", 300))
    began = world.clock()
    world.results(**world.well("bcde", 20), a=[0.1] * 20)
    assert world.ejected == ["a"]
    assert world.clock() - began < 3.0


def test_when_all_become_slow_none_is_to_blame() -> None:
    world = World()
    world.results(**world.well("abcde", 300))
    world.results(**{name: [0.1] * 100 for name in "abcde"})
    assert world.ejected == []


def test_ten_milliseconds_more_or_less_are_no_reason() -> None:
    world = World()
    world.results(**{name: [0.001] * 50 for name in "bcde"}, a=[0.009] * 50)
    assert world.ejected == []


def test_of_two() -> None:
    world = World("a", "b")
    world.results(a=[0.1] * 30, b=[0.01] * 30)
    assert world.ejected == ["a"]


def test_one_alone_is_never_out() -> None:
    world = World("a")
    world.results(a=[None] * 100)
    assert world.ejected == []
    world.fleet.hung(world["a"], 10.0)
    assert world["a"].ejected is None


@pytest.mark.parametrize(("share", "most"), [(0.5, 5), (0.2, 2), (0.01, 1), (0.0, 0)])
def test_never_more_than_a_share(share: float, most: int) -> None:
    world = World(*"abcdefghij", share=share)
    bad = dict.fromkeys("abcde", [None] * 20)
    world.results(**world.well("fghij", 20), **bad)
    world.results(**world.well("fghij", 20), **bad)
    assert len(world.ejected) == most


def test_who_is_unreachable_counts_against_the_share_and_is_not_bound_by_it() -> None:
    world = World(*"abcd")
    for name in "abc":
        assert world.fleet.eject(world[name])
    assert not world.fleet.eject(world["d"], Ejection(Reason.HUNG))
    assert world.fleet.eject(world["d"])


def test_panic_calls_outliers_all_the_same() -> None:
    world = World(*"abcdefghij", panic=0.3)
    for name in "abcd":
        world.fleet.eject(world[name], Ejection(Reason.OUTLIER, 5.0))
    for name in "efg":
        world.fleet.eject(world[name])
    assert [one.instance.id for one in world.fleet.tiers.prime] == ["h", "i", "j"], "three of ten are not less than 30 %"
    world.fleet.eject(world["h"])
    assert [one.instance.id for one in world.fleet.tiers.prime] == list("ijabcd")
    assert world.fleet.tiers.outliers == ()
    world.fleet.restore(world["e"], world["e"].ejected)  # type: ignore[arg-type]
    assert [one.instance.id for one in world.fleet.tiers.prime] == ["e", "i", "j"]


def test_without_panic_the_rest_carries_it_alone() -> None:
    world = World(*"abcdefghij", panic=0.0)
    for name in "abcde":
        world.fleet.eject(world[name], Ejection(Reason.OUTLIER, 5.0))
    for name in "fghi":
        world.fleet.eject(world[name])
    assert [one.instance.id for one in world.fleet.tiers.prime] == ["j"]


def test_sentences_double_with_jitter_and_end_somewhere() -> None:
    for uniform in (0.0, 1.0):
        outliers = Outliers(Rules(seconds=10.0), 0.0, uniform=lambda: uniform)  # noqa: B023
        full = [10.0, 20.0, 40.0, 80.0, 160.0, LONGEST, LONGEST]
        assert [outliers.sentence(number) for number in range(1, 8)] == [each * (0.5 + uniform / 2) for each in full]
        assert outliers.sentence(10**9) <= LONGEST


def test_one_that_is_back_is_on_probation() -> None:
    world = World()
    world.results(**world.well("bcde"), a=[None] * 5)
    first = world["a"].ejected
    assert first is not None
    world.fleet.restore(world["a"], first)
    world.results(**world.well("bcde", 1), a=[None])
    again = world["a"].ejected
    assert again is not None, "one failure is enough now"
    assert again.seconds > first.seconds
    world.fleet.restore(world["a"], again)
    world.results(**world.well("bcde", 4), a=[0.01, *[None] * 3])
    assert world["a"].ejected is None, "a good answer ends the probation"


def test_one_that_is_back_and_slow_is_out_after_three() -> None:
    world = World()
    world.results(**world.well("bcde", 20), a=[0.1] * 20)
    ejection = world["a"].ejected
    assert ejection is not None
    world.fleet.restore(world["a"], ejection)
    world.results(**world.well("bcde", 3), a=[0.1] * 3)
    assert world["a"].ejected is not None


def test_ejections_are_forgiven_in_time() -> None:
    world = World(window=10.0)
    world.results(**world.well("bcde"), a=[None] * 5)
    ejection = world["a"].ejected
    assert ejection is not None
    assert world["a"].ejections == 1
    world.fleet.restore(world["a"], ejection)
    world.results(**world.well("abcde", 250))
    assert world["a"].ejections == 0


def test_old_results_do_not_count() -> None:
    world = World(window=10.0)
    world.results(**world.well("bcde"), a=[0.01, None] * 4)
    world.clock.advance(25.0)
    world.results(**world.well("bcde", 40), a=[0.01, None] * 2)
    assert world.ejected == []


def test_who_is_gone_is_forgotten() -> None:
    world = World()
    world.results(**world.well("abcde"))
    update(world.fleet, *"bcde")
    world.results(**world.well("bcde"))
    assert {one.instance.id for one in world.fleet._outliers._known} == set("bcde")


# -- hung ones, through the layer


def timed_out(world: World, seconds: float, *, unsent: bool = False) -> Endpoint:
    """An attempt at ``a`` that took so long and brought nothing."""
    script = Script()

    def send(call: Any) -> Any:
        world.clock.advance(seconds)
        error = AttemptTimeout("late")
        error.unsent = unsent
        raise error

    script.send = send  # type: ignore[method-assign]
    with pytest.raises(AttemptTimeout):
        run(governed(world.fleet, clock=world.clock), call_to(), script)
    return world["a"]


def test_a_time_out_takes_it_out() -> None:
    ejection = timed_out(World(), 1.0).ejected
    assert ejection is not None
    assert ejection.reason is Reason.HUNG


def test_not_when_answers_take_about_that_long() -> None:
    world = World()
    world.results(**{name: [0.5] * 30 for name in "abcde"})
    assert timed_out(world, 1.0).ejected is None
    assert timed_out(world, 1.6).ejected is not None


def test_not_when_no_connection_of_the_pool_was_free() -> None:
    assert timed_out(World(), 1.0, unsent=True).ejected is None


def test_pushback_is_no_failure() -> None:
    world = World()
    answer = Answer(503)
    answer.headers = {"retry-after": "3"}
    for status in (answer, Answer(429)):
        run(governed(world.fleet), call_to(), Script(status))
    assert world["a"].failures == 0
    run(governed(world.fleet), call_to(), Script(Answer(503)))
    assert world["a"].failures == 1


def test_restoring_an_ejection_that_is_over_does_nothing() -> None:
    world = World()
    world.fleet.eject(world["a"])
    first = world["a"].ejected
    assert first is not None
    world.fleet.restore(world["a"], first)
    world.fleet.eject(world["a"])
    world.fleet.restore(world["a"], first)
    assert world["a"].ejected is not None


@pytest.mark.parametrize(("name", "value"), [("share", 1.5), ("window", 0), ("least", 1), ("seconds", "5"), ("panic", None)])
def test_rules_that_make_no_sense(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"Rules\({name}=\)"):
        Rules(**{name: value})
