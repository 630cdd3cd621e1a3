"""Health checks: blocking and async, that fail, hang and recover."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from meshlib import ConfigError
from meshlib.management.health import Check, Checks, Component, serving, worst
from meshlib.testing import FakeClock, run_virtual


class Connection:
    """A check that is an object."""

    async def __call__(self) -> None:
        """Well."""


async def well() -> None:
    """An async check."""


def fails() -> None:
    raise OSError("db.example refused the password of root")


def play(story: Callable[[Checks, FakeClock], Awaitable[Any]]) -> Any:
    clock = FakeClock()
    return run_virtual(story(Checks(clock=clock), clock), clock=clock)  # type: ignore[arg-type]


async def ask(checks: Checks) -> dict[str, Component]:
    return await checks.results(checks.named(readiness=False))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: None, Component()),
        (lambda: True, Component()),
        (lambda: {"free": 3}, Component("UP", "", {"free": 3})),
        (lambda: False, Component("DOWN", "failed")),
        (fails, Component("DOWN", "failed", {"error": "OSError: db.example refused the password of root"})),
        (well, Component()),
        (partial(well), Component()),
        (Connection(), Component()),
        (lambda: well(), Component()),
    ],
)
def test_what_a_check_says(function: Callable[[], Any], expected: Component) -> None:
    async def story(checks: Checks, _: FakeClock) -> None:
        checks.add("database", function, timeout=1.0, readiness=True)
        assert await ask(checks) == {"database": expected}

    play(story)


def test_a_blocking_check_does_not_run_on_the_loop() -> None:
    async def story(checks: Checks, _: FakeClock) -> None:
        checks.add("database", lambda: {"thread": threading.get_ident()}, timeout=1.0, readiness=True)
        found = await ask(checks)
        assert found["database"].details["thread"] != threading.get_ident()

    play(story)


def test_one_that_hangs_is_down_when_its_time_is_up_and_the_others_are_not_kept() -> None:
    async def story(checks: Checks, clock: FakeClock) -> None:
        checks.add("database", asyncio.Event().wait, timeout=2.0, readiness=True)
        checks.add("cache", well, timeout=9.0, readiness=True)
        began = clock()
        found = await ask(checks)
        assert clock() - began == pytest.approx(2.0, abs=0.01)
        assert (found["database"].status, found["cache"].status) == ("DOWN", "UP")

    play(story)


def test_a_thread_that_hangs_is_one_thread() -> None:
    """However often it is asked for; and who comes later does not wait again."""

    async def story(checks: Checks, clock: FakeClock) -> None:
        loop, begun = asyncio.get_running_loop(), []

        def run_in_executor(_: Any, function: Any) -> Any:
            begun.append(function)
            return loop.create_future()

        loop.run_in_executor = run_in_executor  # type: ignore[method-assign, assignment]
        checks.add("database", fails, timeout=2.0, readiness=True)
        for _ in range(3):
            assert (await ask(checks))["database"] == Component("DOWN", "no answer within 2 s")
        assert clock() - 1000.0 == pytest.approx(2.0, abs=0.01)
        assert len(begun) == 1

    play(story)


def test_a_check_that_is_added_while_all_are_looked_through() -> None:
    checks = Checks()

    class Meanwhile:
        @property
        def readiness(self) -> bool:  # another thread's add() between two of them
            checks.add("another", well, timeout=1.0, readiness=True)
            return True

    checks._known["first"] = first = Meanwhile()  # type: ignore[assignment]
    assert checks.named(readiness=True) == [first]
    assert [getattr(each, "name", "first") for each in checks.named(readiness=True)] == ["first", "another"]


def test_who_asks_meanwhile_gets_the_same_answer() -> None:
    async def story(checks: Checks, _: FakeClock) -> None:
        asked = []

        async def slow() -> None:
            asked.append(1)
            await asyncio.sleep(0.5)

        checks.add("database", slow, timeout=2.0, readiness=True)
        found = await asyncio.gather(*(ask(checks) for _ in range(5)))
        assert found == [{"database": Component()}] * 5
        assert len(asked) == 1
        await ask(checks)
        assert len(asked) == 2

    play(story)


def test_coroutines_run_on_the_loop_of_the_app() -> None:
    """What they use (a pool of connections) belongs to it."""
    seen: list[object] = []

    async def check() -> None:
        seen.append(asyncio.get_running_loop())

    checks = Checks()
    checks.add("database", check, timeout=60.0, readiness=True)

    async def app() -> None:
        checks.home = asyncio.get_running_loop()
        await asyncio.to_thread(lambda: asyncio.run(ask(checks)))
        assert seen == [checks.home]

    asyncio.run(app())
    assert asyncio.run(ask(checks)) == {"database": Component()}, "that loop has ended: any will do"


class Ending:
    """The loop of an app that ends just now: what it is given it never does, or refuses once it is ``closed``."""

    def __init__(self, *, closed: bool) -> None:
        self.closed, self.given = closed, list[Any]()

    def is_running(self) -> bool:
        return True

    def call_soon_threadsafe(self, *given: Any) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.given.append(given)


def test_the_loop_of_the_app_ends_as_it_is_to_make_a_check() -> None:
    async def story(checks: Checks, _: FakeClock) -> None:
        checks.add("database", well, timeout=1.0, readiness=True)
        home: Any = Ending(closed=False)
        checks.home = home
        assert await ask(checks) == {"database": Component("DOWN", "no answer within 1 s")}
        checks.home = None
        assert await ask(checks) == {"database": Component()}, "what was left behind there is not waited for again"
        for _, _, coroutine, _ in home.given:
            coroutine.close()

    play(story)


def test_the_loop_of_the_app_is_closed_as_it_is_to_make_a_check() -> None:
    async def story(checks: Checks, _: FakeClock) -> None:
        checks.add("database", well, timeout=1.0, readiness=True)
        checks.home = Ending(closed=True)  # type: ignore[assignment]
        assert await ask(checks) == {"database": Component()}

    play(story)


def test_it_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([False, False, True, True])

    async def story(checks: Checks, _: FakeClock) -> None:
        checks.add("database", lambda: next(answers), timeout=1.0, readiness=True)
        for _ in range(4):
            await ask(checks)

    with caplog.at_level(logging.WARNING):
        play(story)
    said = [record.getMessage() for record in caplog.records if record.name == "meshlib.management.health"]
    assert said == ["health check database: failed", "health check database: well again"]


@pytest.mark.parametrize(
    ("name", "function", "timeout", "why"),
    [
        ("", well, 1.0, "no name"),
        ("a b", well, 1.0, "no name"),
        ("readinessState", well, 1.0, "no name"),
        ("db", well, 0.0, "not a positive"),
        ("db", None, 1.0, "cannot be called"),
    ],
)
def test_what_is_no_check(name: str, function: Any, timeout: float, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Checks().add(name, function, timeout=timeout, readiness=True)


def test_those_that_readiness_depends_on() -> None:
    checks = Checks()
    checks.add("database", well, timeout=1.0, readiness=True)
    checks.add("mail", well, timeout=1.0, readiness=False)
    assert checks.named(readiness=True) == [Check("database", well, 1.0, True)]
    assert [check.name for check in checks.named(readiness=False)] == ["database", "mail"]


@pytest.mark.parametrize(
    ("statuses", "whole", "served"),
    [
        ([], "UP", True),
        (["UP", "UNKNOWN"], "UP", True),
        (["UNKNOWN"], "UNKNOWN", True),
        (["UP", "OUT_OF_SERVICE"], "OUT_OF_SERVICE", False),
        (["OUT_OF_SERVICE", "DOWN", "UP"], "DOWN", False),
    ],
)
def test_the_whole_is_as_its_worst(statuses: list[Any], whole: str, served: bool) -> None:
    found = worst(Component(status) for status in statuses)
    assert (found, serving(found)) == (whole, served)
