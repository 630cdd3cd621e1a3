"""Random histories on fakes, a thousand for each backend, and fewer on real SQLite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.checker import CONVERGED, Make, Outcome, Violation, play
from tests.model.embedded import Local, Memory
from tests.model.history import Step, generate, shorten
from tests.model.servers import Consul, Etcd
from tests.model.subjects import PROVIDING, Subject

HISTORIES, MORE = 1000, 20_000
REAL = 250
"""For the local registry: it is no fake, and has a file."""
KINDS: dict[str, type[Subject]] = {"memory": Memory, "local": Local, "consul": Consul, "etcd": Etcd}


def maker(kind: str, room: Path) -> Make:
    """Makes subjects of ``kind``; files go to ``room``."""
    if kind == "local":
        return lambda service, clock, rng: Local(service, clock, rng, room=room)
    return KINDS[kind]


def steps_of(kind: str, seed: int) -> list[Step]:
    """The history ``seed`` of ``kind``."""
    return generate(seed, {**PROVIDING, **KINDS[kind].faults})


def seeds(kind: str, start: int, count: int) -> range:
    """Those to play: all, or the one that MESHLIB_HISTORY names."""
    named, _, seed = os.environ.get("MESHLIB_HISTORY", "").partition(":")
    if not named:
        return range(start, start + count)
    return range(int(seed), int(seed) + 1) if named == kind else range(0)


def hunt(kind: str, room: Path, count: int, *, start: int = 0) -> list[Outcome]:
    """Play ``count`` histories, from ``start`` on; the first one that fails is made short and told."""
    make, outcomes = maker(kind, room), []
    for seed in seeds(kind, start, count):
        steps = steps_of(kind, seed)
        try:
            outcomes.append(play(make, seed, steps))
        except Violation:
            short = shorten(steps, lambda some, seed=seed: fails(make, seed, some))  # type: ignore[misc]
            pytest.fail(told(make, kind, seed, short))
    return outcomes


def fails(make: Make, seed: int, steps: list[Step]) -> bool:
    try:
        play(make, seed, steps)
    except Violation:
        return True
    return False


def told(make: Make, kind: str, seed: int, steps: list[Step]) -> str:
    """The failing history, with what was seen at each step."""
    lines: list[str] = []
    try:
        play(make, seed, steps, lines.append)
        problem = "it does not fail again: not deterministic?"
    except Violation as violation:
        problem = str(violation)
    return "\n".join(
        [problem, f"MESHLIB_HISTORY={kind}:{seed} plays it again; made short, it is:", *map(str, steps), "", *lines]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_histories(kind: str, room: Path) -> None:
    report(kind, hunt(kind, room, REAL if kind == "local" else HISTORIES))


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_more_histories(kind: str, room: Path) -> None:
    report(kind, hunt(kind, room, MORE, start=HISTORIES))


def report(kind: str, outcomes: list[Outcome]) -> None:
    """How long it took. A second from healing is more than is promised: reconnecting is jittered over two."""
    if outcomes:
        prompt = sum(one.contact + one.convergence <= CONVERGED for one in outcomes) / len(outcomes)
        print(
            f"{kind}: {len(outcomes)} histories, {sum(one.published for one in outcomes)} snapshots; seconds to contact at most"
            f" {max(one.contact for one in outcomes):.2f}, from there to convergence at most"
            f" {max(one.convergence for one in outcomes):.2f}; {prompt:.1%} converged within {CONVERGED:g} s of healing"
        )
