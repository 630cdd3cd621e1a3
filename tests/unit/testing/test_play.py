"""The third shell: a script for a network. Each row is also performed by the blocking shell, with the same outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from meshlib.errors import ConnectFailed
from meshlib.flow import Call, Flow, Layer, Next, Race, Sleep, Wait, compose, run
from meshlib.model import ServiceUrl
from meshlib.testing import FakeClock, Reply, play


class Network:
    """What the blocking shell sends with, over the same script."""

    def __init__(self, script: list[Any]) -> None:
        self._script = iter(script)
        self.sent = 0

    def send(self, call: Call) -> Any:
        self.sent += 1
        item = next(self._script)
        item = item(call) if callable(item) else item
        if isinstance(item, BaseException):
            raise item
        return item

    def hold(self, response: Any, call: Call) -> None:
        if isinstance(response, Reply) and not response.closed:
            inner, response.call = response.call, call
            if inner is not None and inner is not call:
                call.on_close(inner.close)
        else:
            call.close()

    def drop(self, response: Any) -> None:
        if isinstance(response, Reply):
            response.close()


class Journal:
    """Layers that note what happens."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def holding(self, call: Call, proceed: Next) -> Flow:
        call.on_close(lambda: self.lines.append("released"))
        try:
            return (yield from proceed(call))
        except BaseException as problem:
            self.lines.append(type(problem).__name__)
            raise
        finally:
            self.lines.append("unwound")


def twice(call: Call, proceed: Next) -> Flow:
    try:
        return (yield from proceed(call))
    except ConnectFailed:
        yield Sleep(0.0)
        return (yield from proceed(call))


def swallowing(call: Call, proceed: Next) -> Flow:
    try:
        return (yield from proceed(call))
    except Exception:
        return None


def refusing(call: Call, proceed: Next) -> Flow:
    raise ConnectFailed("refused")
    yield


def again(call: Call, proceed: Next) -> Flow:
    yield from proceed(call)
    return (yield from proceed(call))


def broken(call: Call, proceed: Next) -> Flow:
    yield from proceed(call)
    raise ZeroDivisionError


ROWS: dict[str, tuple[Callable[[Journal], list[Layer]], Callable[[], list[Any]]]] = {
    "an answer": (lambda journal: [journal.holding], lambda: [Reply(204)]),
    "an error": (lambda journal: [journal.holding], lambda: [ConnectFailed("no")]),
    "a function": (lambda journal: [journal.holding], lambda: [lambda call: Reply(202)]),
    "a function that raises": (lambda journal: [journal.holding], lambda: [lambda call: ConnectFailed("no")]),
    "a second attempt": (lambda journal: [twice, journal.holding], lambda: [ConnectFailed("no"), Reply()]),
    "an attempt that fails twice": (lambda journal: [twice, journal.holding], lambda: [ConnectFailed("a"), ConnectFailed("b")]),
    "a refusal above": (lambda journal: [journal.holding, refusing], list),
    "no response": (lambda journal: [journal.holding, swallowing], lambda: [ConnectFailed("no")]),
    "an error after the answer": (lambda journal: [journal.holding, broken], lambda: [Reply()]),
    "an answer that is not returned": (lambda journal: [again, journal.holding], lambda: [Reply(503), Reply()]),
    "an answer that is no reply": (lambda journal: [journal.holding], lambda: [42]),
    "an answer that is closed": (lambda journal: [journal.holding], lambda: [Reply(closed=True)]),
    "a cancellation": (lambda journal: [journal.holding], lambda: [asyncio.CancelledError()]),
    "an interrupt": (lambda journal: [swallowing, journal.holding], lambda: [KeyboardInterrupt()]),
}


@pytest.mark.parametrize(("layers", "script"), ROWS.values(), ids=ROWS)
def test_as_the_blocking_shell(layers: Callable[[Journal], list[Layer]], script: Callable[[], list[Any]]) -> None:
    playing, running = Journal(), Journal()
    played = play(layers(playing), script())
    network, result, error = Network(script()), None, None
    try:
        result = run(compose(layers(running)), Call(ServiceUrl("orders"), "GET", b"/"), network)
    except BaseException as problem:
        error = problem
    assert (type(played.result), type(played.error)) == (type(result), type(error))
    assert len(played.sent) == network.sent
    assert playing.lines == running.lines
    for outcome in (played.result, result):
        if isinstance(outcome, Reply):
            outcome.close()
            outcome.close()
    assert playing.lines == running.lines
    assert playing.lines.count("released") == (running.lines.count("released"))


def test_time_is_a_number() -> None:
    clock = FakeClock(50.0)

    def slow(call: Call, proceed: Next) -> Flow:
        yield Sleep(1.5)
        return (yield from proceed(call))

    played = play([slow], [Reply(seconds=2.0)], clock=clock)
    assert (played.slept, played.elapsed, clock(), played.status) == ((1.5,), 3.5, 53.5, 200)


@pytest.mark.parametrize(
    ("resolved", "wait", "answer", "elapsed"),
    [
        (False, None, False, 3.0),
        (True, None, True, 0.0),
        (False, lambda _: True, True, 0.0),
    ],
)
def test_a_wait(resolved: bool, wait: Any, answer: bool, elapsed: float) -> None:
    future: Future[None] = Future()
    if resolved:
        future.set_result(None)
    heard = []

    def waiting(call: Call, proceed: Next) -> Flow:
        heard.append((yield Wait(future, 3.0)))
        return (yield from proceed(call))

    played = play([waiting], [Reply()], **({} if wait is None else {"wait": wait}))
    assert (heard, played.elapsed, played.waited) == ([answer], elapsed, 1)


def test_a_script_that_is_too_short_fails_whatever_the_layers_catch() -> None:
    with pytest.raises(AssertionError, match="no answer to attempt 1"):
        play([swallowing])


def test_an_assertion_of_a_scripted_function_fails_the_test() -> None:
    def check(call: Call) -> Reply:
        assert call.method == "POST"
        return Reply()

    with pytest.raises(AssertionError):
        play([swallowing], [check])


def test_an_unknown_effect() -> None:
    def odd(call: Call, proceed: Next) -> Flow:
        yield "effect"  # type: ignore[misc]

    with pytest.raises(AssertionError, match="no effect"):
        play([odd])


def test_closing_the_reply_releases_once() -> None:
    journal = Journal()
    played = play([journal.holding], [Reply()])
    assert journal.lines == ["unwound"]
    played.result.close()
    played.result.close()
    assert journal.lines == ["unwound", "released"]


class TestRace:
    """On a clock of their own, as if side by side."""

    @staticmethod
    def racing(asked: list[float], clock: FakeClock, *, attempts: int = 2) -> Layer:
        def calls() -> Any:
            for _ in range(attempts):
                asked.append(clock())
                yield Call(ServiceUrl("orders"), "GET", b"/")

        def layer(call: Call, proceed: Next) -> Flow:
            return (yield Race(proceed, calls(), 1.0))

        return layer

    @pytest.mark.parametrize(("first", "second", "winner", "elapsed", "asked"), [
        (0.5, 0.0, 0, 0.5, [0.0]), (3.0, 1.0, 1, 2.0, [0.0, 1.0]), (3.0, 2.5, 0, 3.0, [0.0, 1.0]),
    ])  # fmt: skip
    def test_rows(self, first: float, second: float, winner: int, elapsed: float, asked: list[float]) -> None:
        clock, heard, replies = FakeClock(0.0), list[float](), [Reply(seconds=first), Reply(seconds=second)]
        played = play([self.racing(heard, clock)], replies, clock=clock)
        assert played.result is replies[winner]
        assert (played.elapsed, heard) == (elapsed, asked), "a call is asked for when it is to begin"
        assert not replies[winner].closed
        assert replies[1 - winner].closed == (len(asked) == 2), "the loser is closed"

    def test_all_fail(self) -> None:
        def late(_call: Call) -> Reply:
            clock.advance(0.25)
            raise ConnectFailed("refused")

        clock, heard = FakeClock(0.0), list[float]()
        played = play([self.racing(heard, clock)], [late, late], clock=clock)
        assert isinstance(played.error, ConnectFailed)
        assert (played.elapsed, heard) == (0.5, [0.0, 0.25]), "the next begins as soon as the one before has failed"
