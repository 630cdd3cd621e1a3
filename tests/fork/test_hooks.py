"""What gunicorn's hooks add: a server that is told to stop is left by its callers before it stops to accept."""

from __future__ import annotations

import signal
from contextlib import suppress
from http.client import HTTPException

import pytest

from tests.fork.stage import Cell, Stage, gunicorn
from tests.servers.base import eventually

CELLS = [gunicorn("sync", 2, hooks=True), gunicorn("gthread", 2, preload=True, hooks=True), gunicorn("gevent", 1, hooks=True),
         gunicorn("asgi", 1, hooks=True)]  # fmt: skip


def still_serves(cell: Cell) -> bool:
    """Whether it answers after it has gone from the registry, while consumers may not know."""
    with Stage(cell, drain_wait=2.0) as stage:
        stage.up()
        assert stage.server is not None
        stage.server.terminate()
        eventually(lambda: not stage.seen.now, within=20, what="it is gone from the registry")
        answered = False
        with suppress(OSError, HTTPException):
            answered = "level" in stage.ask()
        assert stage.server.wait(30) == 0
        assert not stage.failed
        return answered


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_who_still_calls_is_answered(cell: Cell) -> None:
    assert still_serves(cell)


def test_the_control_without_hooks() -> None:
    assert not still_serves(gunicorn("sync", 2))


def test_at_once_is_at_once() -> None:
    """SIGQUIT: the entry goes, and nobody is waited for: not consumers, and not what is in flight."""
    with Stage(gunicorn("gthread", 2, hooks=True), drain_wait=60.0) as stage:
        stage.up()
        assert stage.server is not None
        stage.server.send_signal(signal.SIGQUIT)
        eventually(lambda: not stage.seen.now, within=20, what="it is gone from the registry")
        assert stage.server.wait(30) == 0
