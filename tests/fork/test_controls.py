"""The negative controls of the matrix: what happens with one defence off."""

from __future__ import annotations

import time

from tests.fork.stage import Stage, gunicorn, pool, uvicorn
from tests.servers.base import eventually

POOL = pool("fork", 2)


def leaves_a_gap(stage: Stage, first: float, count: int) -> bool:
    """Whether nobody was listed at some time since ``first``, when ``count`` workers have left; or as many more, for a gap may be
    over before it is looked at."""

    def gap() -> bool:
        stage.recycle(count)
        return not stage.seen.always_one(first, time.monotonic())

    return any(gap() for _ in range(8))


def test_without_election_all_keep_the_entry_and_one_that_leaves_takes_it_from_the_others() -> None:
    with Stage(POOL, without="election") as stage:
        first = stage.up()
        eventually(lambda: stage.registrars() == 2, within=60, what="both keep the entry")
        assert leaves_a_gap(stage, first, 1)


def test_without_handing_over_one_that_leaves_takes_it_from_the_others() -> None:
    with Stage(POOL, without="hand-over") as stage:
        first = stage.up()
        assert leaves_a_gap(stage, first, 2)  # the registrar is one of them


def test_without_a_shared_generation_a_new_registrar_is_a_restart_to_consumers() -> None:
    with Stage(POOL, without="generation") as stage:
        stage.up()
        before = stage.seen.now
        stage.kill_a_worker()
        eventually(lambda: len(stage.seen.generations) > 1, within=60, what="another generation")
        assert {listed[0][0] for _, listed in stage.seen.timeline if listed} == {before[0][0]}


def test_without_expecting_a_successor_the_only_worker_leaves_a_gap() -> None:
    with Stage(gunicorn("sync", 1, requests=40), without="successor") as stage:
        first = stage.up()
        assert leaves_a_gap(stage, first, 1)


def test_without_the_lifespan_nobody_deregisters_at_the_end_of_uvicorn() -> None:
    with Stage(uvicorn(2), without="lifespan", ttl=120.0) as stage:  # it does not expire before it is looked at
        stage.up()
        stage.end()
        time.sleep(4.0)  # as long as the matrix gives it
        assert stage.seen.now
