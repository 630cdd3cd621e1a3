"""Workers come and go, by the dozen: nobody ends up with more descriptors or threads than at the beginning."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.fork.stage import Cell, Stage, gunicorn
from tests.servers.base import eventually

SAMPLE = 5
"""Workers at the beginning and at the end that are compared."""
SLACK = 2
"""Connections and threads for blocking work that one may have at the moment and another not."""
IN_CI = gunicorn("sync", 4, preload=True, requests=8)
IN_SOAK = [
    gunicorn(kind, 2, preload=preload, requests=8) for kind in ("gthread", "gevent", "asgi") for preload in (False, True)
]


def most(stage: Stage) -> tuple[int, int]:
    """What the master has at most, files and threads, while some workers begin (for a second, if they are quick): it opens the
    registry anew after each fork."""
    assert stage.server is not None
    seen, workers, end = [], len(stage.answers) + SAMPLE, time.monotonic() + 1.0

    def looked_at() -> bool:
        seen.append((stage.files(stage.server_pid), stage.tasks(stage.server_pid)))
        return len(stage.answers) >= workers and time.monotonic() > end

    eventually(looked_at, within=240, what="workers are recycled")
    return max(files for files, _ in seen), max(tasks for _, tasks in seen)


def growth(cell: Cell, recycles: int) -> dict[str, int]:
    """By how much there is more of what is held, in the master and in its workers, after ``recycles`` workers."""
    with Stage(cell, rate=200) as stage:
        first = stage.up()
        stage.recycle(SAMPLE, settle=False)
        before = most(stage)
        stage.recycle(recycles - SAMPLE, settle=False)
        after = most(stage)
        files, tasks = stage.holding("files"), stage.holding("tasks")
        print(f"{cell.name}: {len(files)} workers; master {before} then {after}; files {files[:SAMPLE]} … {files[-SAMPLE:]}; "
              f"threads {tasks[:SAMPLE]} … {tasks[-SAMPLE:]}")  # fmt: skip
        last = stage.end()
        assert stage.seen.always_one(first, last)
        assert not stage.failed
    grown = {
        "master's files": after[0] - before[0],
        "master's threads": after[1] - before[1],
        "workers' files": max(files[-SAMPLE:]) - max(files[:SAMPLE]),
        "workers' threads": max(tasks[-SAMPLE:]) - max(tasks[:SAMPLE]),
    }
    print(grown)
    return grown


def leaks_nothing(cell: Cell, recycles: int) -> bool:
    """At most the second time: what is open for a moment only may have been seen in the end and missed at the beginning."""
    return any(max(growth(cell, recycles).values()) <= SLACK for _ in range(2))


def test_recycled_workers_leak_nothing() -> None:
    assert leaks_nothing(IN_CI, 24)


@pytest.mark.soak
@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in (IN_CI, *IN_SOAK)])
def test_fifty_recycles_leak_nothing(cell: Cell) -> None:
    assert leaks_nothing(cell, 50)


def test_the_control_a_master_that_leaks() -> None:
    leaking = replace(IN_CI, command=[*IN_CI.command, "--config", "tests/fork/leaking.py"])
    grown = growth(leaking, 12)
    assert grown["master's files"] > SLACK
    assert grown["workers' files"] > SLACK, "they inherit it"
