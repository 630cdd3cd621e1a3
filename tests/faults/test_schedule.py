"""The schedule of random faults: the same from the same seed, everything undone, and a failure that tells its seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.faults.schedule import VARIABLE, Fault, Step, lane, perform, replayable


def test_the_same_seed_is_the_same_schedule() -> None:
    def planned(seed: int) -> list[Step]:
        return lane(Random(seed), ("killed", "frozen"), targets=3, seconds=60)

    assert planned(1) == planned(1) != planned(2)


@pytest.mark.parametrize("seed", range(20))
def test_a_lane_has_one_fault_at_a_time_and_ends_in_time(seed: int) -> None:
    steps = lane(Random(seed), ("killed", "frozen"), targets=3, seconds=30)
    ends = [step.at + step.seconds for step in steps]
    assert len(steps) > 5
    assert all(end < step.at for end, step in zip(ends, steps[1:], strict=False))
    assert ends[-1] <= 30
    assert {step.target for step in steps} <= {0, 1, 2}


def recording(told: list[str], *, failing: str = "") -> dict[str, Fault]:
    @contextmanager
    def broken(target: int) -> Iterator[None]:
        told.append(f"break {target}")
        if failing == str(target):
            raise RuntimeError("cannot be broken")
        try:
            yield
        finally:
            told.append(f"mend {target}")

    return {"broken": broken}


def test_beginnings_and_ends_come_in_their_order() -> None:
    told: list[str] = []
    perform([Step(0.0, "broken", 1, 0.03), Step(0.01, "broken", 2, 0.01)], recording(told))
    assert told == ["break 1", "break 2", "mend 2", "mend 1"]


def test_what_is_under_way_is_undone_when_something_fails() -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError):
        perform([Step(0.0, "broken", 1, 0.03), Step(0.01, "broken", 2, 0.01)], recording(told, failing="2"))
    assert told == ["break 1", "break 2", "mend 1"]


def test_a_failure_tells_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.fail.Exception) as caught, replayable() as random:
        drawn = random.random()
        pytest.fail("a call failed")
    (note,) = caught.value.__notes__
    monkeypatch.setenv(VARIABLE, note.rpartition("=")[2])
    with replayable() as random:
        assert random.random() == drawn


def test_a_seed_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "x")
    with pytest.raises(ValueError, match="MESHLIB_FAULT_SEED=x in the environment is no seed; for example"), replayable():
        pass
