"""Work that nobody waits for: in bounds, whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable

import pytest

from meshlib import background
from meshlib.background import Background
from meshlib.errors import ConnectFailed
from meshlib.flow import Aside, Call, Flow, Next, arun, compose, run
from tests.unit.flows import Answer, AsyncScript, Script, call_to, fleet, governed, idle

PATIENCE = 30.0


def eventually(true: Callable[[], bool]) -> bool:
    """Whether ``true()`` comes true: other threads have to come to it first."""
    end, never = time.monotonic() + PATIENCE, threading.Event()
    while not true():
        if time.monotonic() > end:
            return False
        never.wait(0.001)
    return True


def test_threads_do_it_in_a_copy_of_the_context() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    name.set("caller")
    done, seen = threading.Event(), []

    def work() -> None:
        seen.append((name.get(), threading.current_thread().daemon))
        done.set()

    assert Background().run(work)
    assert done.wait(PATIENCE)
    assert seen == [("caller", True)]


def test_what_is_too_much_at_once_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "AT_ONCE", 3)
    some, gate, done = Background(), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        gate.wait(PATIENCE)
        done.release()

    assert [some.run(work) for _ in range(5)] == [True, True, True, False, False]
    gate.set()
    for _ in range(3):
        assert done.acquire(timeout=PATIENCE)
    over = threading.Event()
    assert eventually(lambda: some.run(over.set)), "the last of them may not have been noted yet"
    assert over.wait(PATIENCE)


@pytest.mark.parametrize("problem", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_work_raises_harms_nobody(problem: type[BaseException]) -> None:
    some, over = Background(), threading.Event()

    def fails() -> None:
        raise problem

    for _ in range(3 * background.AT_ONCE):
        assert eventually(lambda: some.run(fails))
    assert eventually(lambda: some.run(over.set))
    assert over.wait(PATIENCE)


def test_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "AT_ONCE", 3)
    some = Background()

    async def main() -> None:
        gate, done = asyncio.Event(), []

        async def work() -> None:
            await gate.wait()
            done.append(1)
            raise ValueError

        assert [some.begin(work) for _ in range(5)] == [True, True, True, False, False]
        gate.set()
        while len(done) < 3:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert some.begin(work)

    asyncio.run(main())
    asyncio.run(main())  # with tasks that ended with the first loop


def test_a_child_process_begins_anew() -> None:
    some, gate = Background(), threading.Event()
    assert some.run(lambda: gate.wait(PATIENCE))
    some.forked()
    over = threading.Event()
    assert some.run(over.set)
    assert over.wait(PATIENCE)
    gate.set()


def test_a_fork_that_ran_no_hook_is_noticed() -> None:
    some, over = Background(), threading.Event()
    some._jobs.update(range(background.AT_ONCE))
    assert not some.run(over.set)
    some._pid = -1
    assert some.run(over.set)
    assert over.wait(PATIENCE)


# -- the effect


def aside(copy: Call, seen: list[object]) -> object:
    def layer(call: Call, proceed: Next) -> Flow:
        seen.append((yield Aside(proceed, copy)))
        return (yield from proceed(call))

    return layer


class Slow(Script):
    """The copy hangs until the caller has its answer; ``ended`` when its attempt is over."""

    def __init__(self, *outcomes: object) -> None:
        super().__init__(*outcomes)
        self.gate, self.ended, self.dropped = threading.Event(), threading.Event(), threading.Event()

    def send(self, call: Call) -> object:
        if call.path != b"/copy":
            return super().send(call)
        assert self.gate.wait(PATIENCE)
        try:
            return super().send(call)
        finally:
            self.ended.set()

    def drop(self, response: object) -> None:
        super().drop(response)
        self.dropped.set()


@pytest.mark.parametrize("end", [Answer, ConnectFailed, ZeroDivisionError, KeyboardInterrupt])
def test_a_copy_neither_delays_nor_fails_its_call(end: type) -> None:
    known, seen, answer = fleet("a"), [], Answer()
    outcome = end() if end is Answer else end
    script = Slow(answer, outcome)
    copy = call_to(b"/copy")
    got = run(compose([aside(copy, seen)], governed(known)), call_to(), script)
    assert got is answer, "before the copy was answered"
    assert seen == [True]
    script.gate.set()
    assert script.ended.wait(PATIENCE)
    if end is Answer:
        assert script.dropped.wait(PATIENCE)
        assert outcome.closed == 1
    answer.close()
    assert eventually(lambda: idle(known))


def test_a_copy_that_is_made_by_the_call_itself_fails_it() -> None:
    """The control."""

    def inline(call: Call, proceed: Next) -> Flow:
        yield from proceed(call_to(b"/copy"))
        return (yield from proceed(call))

    with pytest.raises(ZeroDivisionError):
        run(compose([inline], governed(fleet("a"))), call_to(), Script(ZeroDivisionError, Answer()))


@pytest.mark.parametrize("end", [Answer, ConnectFailed, ZeroDivisionError])
def test_the_same_with_asyncio(end: type) -> None:
    known, seen, answer = fleet("a"), [], Answer()
    outcome = end() if end is Answer else end
    script = Script(answer, outcome)

    class Late(AsyncScript):
        async def send(self, call: Call) -> object:
            if call.path == b"/copy":
                await gate.wait()
            return await super().send(call)

    gate = asyncio.Event()

    async def main() -> None:
        sender = Late(script)
        got = await arun(compose([aside(call_to(b"/copy"), seen)], governed(known)), call_to(), sender)
        assert got is answer
        assert seen == [True]
        assert script.log == ["send a"]
        gate.set()
        while len(script.log) < 2 or (end is Answer and script.log[-1] != "drop"):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        got.close()
        assert idle(known)

    asyncio.run(main())
    if end is Answer:
        assert outcome.closed == 1
