"""Prefork servers: one registration throughout, whatever happens to the workers, and calls work in all of them.

A story mostly waits, so three of them run at a time; each test looks at its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.fork.stage import HEARTBEAT, Cell, Stage, granian, gunicorn, pool, uvicorn
from tests.servers.base import eventually

AT_ONCE = 3
REQUESTS = 40
CELLS = [
    gunicorn(kind, workers, preload=preload, requests=REQUESTS)
    for kind in ("sync", "gthread", "gevent", "asgi")
    for workers in (1, 4)
    for preload in (False, True)
] + [
    *(gunicorn(kind, 4, preload=kind == "gthread", requests=REQUESTS, hooks=True) for kind in ("sync", "gthread", "gevent", "asgi")),
    gunicorn("sync", 1, requests=REQUESTS, hooks=True),
    uvicorn(4), granian("asgi", 2), granian("wsgi", 2), pool("fork", 4), pool("spawn", 4),
]  # fmt: skip
IN_SOAK = {"gunicorn sync x4", "gunicorn gthread x1", "gunicorn gthread x4 preload", "gunicorn gevent x1",
           "gunicorn gevent x4 preload", "gunicorn asgi x1 preload", "gunicorn asgi x4", "gunicorn sync x4 hooks",
           "gunicorn gevent x4 hooks", "gunicorn asgi x4 hooks", "gunicorn sync x1 hooks", "granian wsgi x2"}  # fmt: skip
"""Every kind, count and way of loading is in CI, not every combination."""


def story(cell: Cell) -> None:
    """Start, kill -9, HUP, recycling, stop."""
    with Stage(cell) as stage:
        first = stage.up()
        generation = stage.seen.generation
        if cell.workers == 1:  # a new one has to start first
            stage.kill_a_worker()
        else:  # the machine may be busy just then: another one, and another one
            assert any(stage.kill_a_worker() <= HEARTBEAT for _ in range(3))
            assert stage.seen.generation == generation, "a new registrar is no restart"
        stage.hang_up()
        stage.recycle(min(cell.workers, 2))
        if cell.preload:
            assert stage.seen.generations == {generation}, "the master has stayed"
        # Who keeps the entry knows it, and nobody else thinks so. With --preload, the master may be the one, or have come late.
        eventually(lambda: stage.registrars() == (stage.registrar() in stage.workers()), within=60, what="one registrar")
        eventually(lambda: (stage.server_pid in stage.lock_holders(1)) is cell.preload, within=60, what="only --preload makes "
                   "the master one of them")  # fmt: skip
        last = stage.end()
        # By itself the entry would live for two heartbeats from then on.
        left = last + 2 * HEARTBEAT - time.monotonic()
        eventually(lambda: not stage.seen.now, within=max(4.0, left - 1.0), what="the last one out deregisters")
        assert stage.seen.always_one(first, last)
        assert not stage.failed


@pytest.fixture(scope="module")
def stories(request: pytest.FixtureRequest, beside_others: None) -> Iterator[Callable[[Cell], Future[None]]]:
    chosen = [item.callspec.params["cell"] for item in request.session.items
              if isinstance(item, pytest.Function) and item.module is request.module]  # fmt: skip
    with ThreadPoolExecutor(AT_ONCE) as executor:
        running = {cell.name: executor.submit(story, cell) for cell in chosen}
        yield lambda cell: running[cell.name]
        for each in running.values():
            each.cancel()


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, id=cell.name, marks=pytest.mark.soak if cell.name in IN_SOAK else ()) for cell in CELLS]
)
def test_one_registration_throughout(cell: Cell, stories: Callable[[Cell], Future[None]]) -> None:
    stories(cell).result()
