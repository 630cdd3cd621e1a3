"""Faults at random, and the same ones again from the same seed.

A seed decides what happens to whom, when and for how long, and which bytes a proxy damages as long as it carries the same.
What the processes do meanwhile it cannot decide: a replay brings the same faults, not the same race.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from random import Random, SystemRandom

VARIABLE = "MESHLIB_FAULT_SEED"

Fault = Callable[[int], AbstractContextManager[object]]
"""Does something bad to the target of that number, and undoes it at the end."""


@contextmanager
def replayable() -> Iterator[Random]:
    """Random numbers of the seed in :data:`VARIABLE`, or of a fresh one. A failure inside says which it was. Raises
    ValueError when the variable holds no number."""
    text = os.environ.get(VARIABLE, "")
    if text and not text.isdecimal():
        raise ValueError(f"{VARIABLE}={text[:40]} in the environment is no seed; for example {VARIABLE}=1234")
    seed = int(text) if text else SystemRandom().randrange(1_000_000)
    try:
        yield Random(seed)
    except BaseException as problem:  # pytest's own failures are none of Exception
        problem.add_note(f"the same faults again: {VARIABLE}={seed}")
        raise


@dataclass(frozen=True)
class Step:
    """``fault`` befalls ``target`` for ``seconds``, ``at`` seconds after the beginning."""

    at: float
    fault: str
    target: int
    seconds: float

    def __str__(self) -> str:
        return f"+{self.at:.2f} s {self.fault} {self.target} for {self.seconds:.2f} s"


def lane(random: Random, faults: Iterable[str], *, targets: int, seconds: float) -> list[Step]:
    """One fault after the other, each to one of ``targets``, with pauses, all over within ``seconds``."""
    steps, at, names = list[Step](), random.uniform(0, 0.5), list(faults)
    while True:
        step = Step(at, random.choice(names), random.randrange(targets), random.uniform(0.2, 2.0))
        if step.at + step.seconds > seconds:
            return steps
        steps.append(step)
        at += step.seconds + random.uniform(0.1, 1.0)


def perform(steps: Sequence[Step], faults: dict[str, Fault]) -> None:
    """Do all of ``steps`` in their time, one beginning or end after the other; what takes long delays those behind it."""
    began, under_way = time.monotonic(), dict[Step, ExitStack]()
    moments = sorted([(step.at, True, step) for step in steps] + [(step.at + step.seconds, False, step) for step in steps],
                     key=lambda moment: moment[:2])  # fmt: skip
    with ExitStack() as everything:
        for when, begins, step in moments:
            time.sleep(max(0.0, began + when - time.monotonic()))
            if begins:
                under_way[step] = everything.enter_context(ExitStack())
                under_way[step].enter_context(faults[step.fault](step.target))
            else:
                under_way.pop(step).close()
