"""The blocking shell: performs effects in the caller's thread."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack
from typing import Any

from meshlib.background import BACKGROUND
from meshlib.errors import ConfigError
from meshlib.flow.abstraction import TIMED, Aside, Await, Call, Close, Effect, Next, Race, Send, Sender, Sleep, Wait


def run(proceed: Next, call: Call, sender: Sender, *, sleep: Callable[[float], None] = time.sleep) -> Any:
    """Perform ``proceed(call)`` in this thread and return its response. Other responses it asked for are closed."""
    flow = proceed(call)
    answers: list[Any] = []
    try:
        effect = next(flow)
        while True:
            try:
                if type(effect) is Send:
                    answer = _send(effect.call, sender)
                    answers.append(answer)
                else:
                    answer = _perform(effect, sender, sleep, answers)
            except BaseException as problem:  # noqa: BLE001 - it is the flow's to handle, cancellation included
                effect = flow.throw(problem)
            else:
                effect = flow.send(answer)
    except StopIteration as done:
        if answers and (len(answers) > 1 or answers[0] is not done.value):
            try:
                _drop(answers, sender, done.value)
            except BaseException:  # interrupted: nobody gets the answer
                call.close()
                _drop([each for each in answers if each is done.value], sender)
                raise
        if call.closers:
            sender.hold(done.value, call)
        return done.value
    except BaseException:
        call.close()
        _drop(answers, sender)
        raise


def _send(call: Call, sender: Sender) -> Any:
    try:
        answer = sender.send(call)
    except BaseException:
        call.close()
        raise
    if call.endpoint is not None or call.closers is not None:
        sender.hold(answer, call)
    return answer


def _perform(effect: Effect, sender: Sender, sleep: Callable[[float], None], answers: list[Any]) -> Any:
    own = getattr(sender, "perform", None)  # of an engine with a time of its own: see meshlib.testing
    if own is not None and type(effect) in TIMED:
        return collected(own(effect), effect, answers)
    if type(effect) is Sleep:
        return sleep(effect.seconds)
    if type(effect) is Wait:
        return _wait(effect)
    if type(effect) is Close:
        forget(answers, effect.response)
        sender.drop(effect.response)
        return None
    if type(effect) is Aside:
        aside = effect
        return BACKGROUND.run(lambda: sender.drop(run(aside.proceed, aside.call, sender)))
    if type(effect) is Await:
        raise _refused(effect.awaitable)
    assert type(effect) is Race, effect
    answers.append(raced(effect, Course(effect, sender)))
    return answers[-1]


def _refused(awaitable: Any) -> ConfigError:
    name = getattr(awaitable, "__qualname__", type(awaitable).__name__)
    getattr(awaitable, "close", lambda: None)()  # or Python warns that it was never awaited
    return ConfigError(name, "is an async function, and the call is a blocking one", example="def, or an async def method")


def collected(answer: Any, effect: Effect, answers: list[Any]) -> Any:
    """``answer`` to ``effect``; that of a race is an answer to the call, to be closed unless it is returned."""
    if type(effect) is Race:
        answers.append(answer)
    return answer


def forget(answers: list[Any], response: Any) -> None:
    """``response`` is closed already."""
    answers[:] = [each for each in answers if each is not response]


def _wait(effect: Wait) -> bool:
    try:
        effect.future.exception(effect.timeout)
    except TimeoutError:
        return False
    except futures.CancelledError:
        pass  # settled as well: the layer looks for what it waited for
    return True


class Course:
    """A race between threads: what each attempt comes to, until one has won."""

    def __init__(self, race: Race, sender: Sender) -> None:
        self._race, self._sender = race, sender
        self._ends: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._over = False

    def begin(self, call: Call) -> None:
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._attempt, call), name="meshlib-race", daemon=True).start()

    def _attempt(self, call: Call) -> None:
        try:
            end: tuple[Any, BaseException | None] = (run(self._race.proceed, call, self._sender), None)
        except BaseException as problem:  # noqa: BLE001 - it is the caller's, in another thread
            end = (None, problem)
        with self._lock:
            lost = self._over
            if not lost:
                self._ends.put(end)
        if lost and end[1] is None:
            self._sender.drop(end[0])

    def wait(self, timeout: float | None) -> tuple[Any, BaseException | None] | None:
        """The next end, None when there is none in ``timeout`` seconds."""
        try:
            return self._ends.get(timeout=timeout)
        except queue.Empty:
            return None

    def finish(self) -> None:
        """Whoever comes now has lost."""
        with self._lock:
            self._over = True
        while not self._ends.empty():
            response, problem = self._ends.get()
            if problem is None:
                self._sender.drop(response)


def raced(race: Race, course: Course) -> Any:
    """The first answer of ``course``, whose attempts are begun as ``race`` wants."""
    calls, running = iter(race.calls), 0
    failure: BaseException | None = None
    try:
        while True:
            call = next(calls, None)
            if call is not None:
                course.begin(call)
                running += 1
            elif not running:
                assert failure is not None, "a race without calls"
                raise failure
            end = course.wait(None if call is None else race.delay)
            if end is None:
                continue
            if end[1] is None:
                return end[0]
            failure, running = end[1], running - 1
    finally:
        failure = None  # its traceback leads here: no cycle
        course.finish()


def _drop(answers: list[Any], sender: Sender, keep: Any = None) -> None:
    with ExitStack() as stack:  # each, also if closing another fails or is interrupted
        for answer in answers:
            if answer is not keep:
                stack.callback(sender.drop, answer)
