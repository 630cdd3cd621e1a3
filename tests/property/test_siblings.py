"""Siblings against a naive model: whatever order processes come, go and die in, one keeps the entry, and one is the last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers.sibling import Sibling

PROCESSES = 3
steps = st.lists(
    st.tuples(
        st.integers(0, PROCESSES - 1),
        st.sampled_from(["look", "look", "look", "leave", "die", "draining", "up", "remove"]),
    ),
    max_size=30,
)
numbers = itertools.count()


class Model:
    """All that matters: who is a member, who of them keeps the entry, and what they have in common."""

    def __init__(self) -> None:
        self.members: set[int] = set()
        self.registrar: int | None = None
        self.generation = ""
        self.status = "up"

    def look(self, who: int, proposes: str) -> list[object]:
        if not self.members:
            self.generation, self.status = proposes, "up"
        self.members.add(who)
        if self.registrar is None:
            self.registrar = who
        return [self.registrar == who, "shop-1", self.generation, self.status]

    def gone(self, who: int) -> bool:
        was = who in self.members
        self.members.discard(who)
        if self.registrar == who:
            self.registrar = None
        return was and not self.members


class Lockstep:
    """Has the processes and the model do the same."""

    def __init__(self, file: Path, processes: list[Sibling]) -> None:
        self.file, self.processes, self.model = file, processes, Model()
        self.number = itertools.count()

    def look(self, who: int) -> None:
        proposed = f"g{next(self.number)}"
        assert self.processes[who].ask(self.file, "look", proposes=proposed)[:4] == self.model.look(who, proposed)

    def leave(self, who: int) -> None:
        assert self.processes[who].ask(self.file, "leave") == self.model.gone(who)
        self.processes[who].ask(self.file, "close")

    def die(self, who: int) -> None:
        self.processes[who].ask(self.file, "die")
        self.model.gone(who)

    def remove(self, _who: int) -> None:
        """Those who look find each other again, as the same instance; who looks first keeps the entry."""
        self.file.unlink(missing_ok=True)
        self.model.registrar = None
        for one in sorted(self.model.members):
            self.look(one)

    def wish(self, who: int, status: str) -> None:
        if who in self.model.members:
            self.processes[who].ask(self.file, "wish", status)
            self.model.status = status


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Sibling]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Sibling()) for _ in range(PROCESSES)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_against_the_model(steps: list[tuple[int, str]], processes: list[Sibling], tmp_path: Path) -> None:
    both = Lockstep(tmp_path / "siblings" / f"shop-{next(numbers)}", processes)
    for who, step in steps:
        if step in ("draining", "up"):
            both.wish(who, step)
        else:
            getattr(both, step)(who)
    for process in processes:
        process.ask(both.file, "die")
