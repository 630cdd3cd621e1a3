"""Histories: made from a seed, played, and made shorter when they fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PAUSES = (0.0, 0.0, 0.005, 0.05, 0.3, 1.0, 3.0, 7.0)
"""Seconds before a step: some land in the middle of an exchange, some let leases and deadlines pass."""


@dataclass(frozen=True)
class Step:
    """``action`` after ``pause`` seconds; what ``who`` and ``how`` choose is up to the subject."""

    pause: float
    action: str
    who: int
    how: int

    def __str__(self) -> str:
        return f"after {self.pause:5} s {self.action}({self.who}, {self.how})"


def generate(seed: int, actions: Mapping[str, int]) -> list[Step]:
    """The history of ``seed``: two processes, then 4 to 20 steps."""
    rng = random.Random(seed)
    first = [Step(0.0, "start", rng.randrange(12), rng.randrange(12)) for _ in range(2)]
    names = rng.choices(list(actions), list(actions.values()), k=rng.randint(4, 20))
    return first + [Step(rng.choice(PAUSES), name, rng.randrange(12), rng.randrange(12)) for name in names]


def shorten(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    """A part of ``steps`` that still fails, and no longer does when any one step is left out."""
    place = 0
    while place < len(steps):
        without = steps[:place] + steps[place + 1 :]
        if fails(without):
            steps, place = without, 0
        else:
            place += 1
    return steps
