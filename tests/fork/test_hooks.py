"""What gunicorn's hooks add: a server that is told to stop is left by its callers before it stops to accept."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException

import pytest

from tests.fork.stage import Cell, Stage, gunicorn
from tests.servers.base import eventually

AT_ONCE = 3
"""They mostly wait."""
CONTROL = gunicorn("sync", 2)
CELLS = [gunicorn("sync", 2, hooks=True), gunicorn("gthread", 2, preload=True, hooks=True), gunicorn("gevent", 1, hooks=True),
         gunicorn("asgi", 1, hooks=True), CONTROL]  # fmt: skip


def still_serves(cell: Cell) -> bool:
    """Whether it answers after it has gone from the registry, while consumers may not know."""
    with Stage(cell, drain_wait=6.0) as stage:
        stage.up()
        assert stage.server is not None
        stage.server.terminate()
        eventually(lambda: not stage.seen.now, within=60, what="it is gone from the registry")
        answered = False
        with suppress(OSError, HTTPException):
            answered = "level" in stage.ask()
        assert stage.server.wait(60) == 0
        assert not stage.failed
        return answered


def story(cell: Cell) -> bool:
    """At most the second time: a busy machine may take longer to ask than there is time."""
    return still_serves(cell) or (cell is not CONTROL and still_serves(cell))


@pytest.fixture(scope="module")
def stories(beside_others: None) -> Iterator[Callable[[Cell], Future[bool]]]:
    with ThreadPoolExecutor(AT_ONCE) as executor:
        running = {cell.name: executor.submit(story, cell) for cell in CELLS}
        yield lambda cell: running[cell.name]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_who_still_calls_is_answered(cell: Cell, stories: Callable[[Cell], Future[bool]]) -> None:
    """And without hooks, the control, is not."""
    assert stories(cell).result() is (cell is not CONTROL)


def test_at_once_is_at_once() -> None:
    """SIGQUIT: the entry goes, and nobody is waited for, neither consumers nor what is in flight."""
    with Stage(gunicorn("gthread", 2, hooks=True), drain_wait=60.0) as stage:
        stage.up()
        assert stage.server is not None
        stage.server.send_signal(signal.SIGQUIT)
        eventually(lambda: not stage.seen.now, within=60, what="it is gone from the registry")
        assert stage.server.wait(30) == 0
