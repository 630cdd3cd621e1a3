"""The third shell: performs a flow with a script instead of a network, and a number instead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from meshlib.flow import Aside, Await, Call, Close, Layer, Race, Send, Sleep, Wait, compose
from meshlib.model import ServiceUrl
from meshlib.testing.clock import FakeClock


@dataclass(slots=True)
class Reply:
    """An answer in a script: ``status``, ``headers`` (lower-case names), and the ``seconds`` it takes."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    call: Call | None = None
    closed: bool = False

    @property
    def status_code(self) -> int:
        """As the engine's response calls it."""
        return self.status

    def close(self) -> None:
        """What reading or closing the body does: release what the call holds."""
        self.closed = True
        if self.call is not None:
            self.call.close()


Scripted: TypeAlias = Reply | BaseException | Callable[[Call], Any]
"""What one Send meets: an answer, an error to raise, or a function of the call that returns or raises one."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it. ``result`` or ``error``; ``sent`` the calls that were sent; ``slept`` the pauses in seconds;
    ``waited`` the number of waits; ``elapsed`` seconds on the clock; ``aside`` the calls given to the background, which a play
    does not perform."""

    result: Any
    error: BaseException | None
    sent: tuple[Call, ...]
    slept: tuple[float, ...]
    waited: int
    elapsed: float
    aside: tuple[Call, ...] = ()

    @property
    def status(self) -> int | None:
        """The status of the answer, None where there is none."""
        return None if self.result is None else self.result.status_code


def play(
    layers: Iterable[Layer],
    script: Iterable[Scripted] = (),
    *,
    call: Call | None = None,
    clock: FakeClock | None = None,
    wait: Callable[[Wait], bool] = lambda wait: wait.future.done(),
) -> Played:
    """Perform a call through ``layers`` (outermost first): each Send takes the next item of ``script``, each Sleep moves
    ``clock``, each Wait is answered by ``wait`` (and takes its whole time-out when that is False).

    A script that is too short fails the play with an AssertionError; one that is not used up does not.
    """
    clock, call = clock or FakeClock(), call or Call(ServiceUrl("orders"), "GET", b"/")
    stage = _Stage(iter(script), clock, wait)
    start = clock()
    result, error = stage.perform(compose(layers), call)
    return Played(result, error, tuple(stage.sent), tuple(stage.slept), stage.waited, clock() - start,
                  tuple(stage.aside))  # fmt: skip


class _Stage:
    def __init__(self, script: Iterator[Scripted], clock: FakeClock, wait: Callable[[Wait], bool]) -> None:
        self._script, self._clock, self._wait = script, clock, wait
        self.sent: list[Call] = []
        self.slept: list[float] = []
        self.aside: list[Call] = []
        self.waited = 0
        self._answers: list[Any] = []

    def perform(self, proceed: Any, call: Call) -> tuple[Any, BaseException | None]:
        flow = proceed(call)
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._answer(effect)
                except AssertionError:  # the test's, not the flow's to handle
                    flow.close()
                    raise
                except BaseException as problem:  # noqa: BLE001 - the flow handles it
                    effect = flow.throw(problem)
                else:
                    effect = flow.send(answer)
        except StopIteration as done:
            self._drop(done.value)
            self._hold(done.value, call)
            return done.value, None
        except AssertionError:
            call.close()
            raise
        except BaseException as error:  # noqa: BLE001 - the outcome of the play
            call.close()
            self._drop()
            return None, error

    def _answer(self, effect: Any) -> Any:
        if isinstance(effect, Sleep):
            self.slept.append(effect.seconds)
            return self._clock.advance(effect.seconds)
        if isinstance(effect, Wait):
            self.waited += 1
            resolved = self._wait(effect)
            self._clock.advance(0.0 if resolved else effect.timeout)
            return resolved
        if isinstance(effect, Close):
            self._answers = [each for each in self._answers if each is not effect.response]
            return effect.response.close()
        if isinstance(effect, Race):
            return self._race(effect)
        if isinstance(effect, Aside):
            self.aside.append(effect.call)
            return True
        if isinstance(effect, Await):
            return _at_once(effect.awaitable)
        assert isinstance(effect, Send), f"{effect!r} is no effect"
        return self._send(effect.call)

    def _race(self, race: Race) -> Any:
        """One after the other on the clock of each, as if side by side: who is done first has won."""
        calls, started = iter(race.calls), self._clock()
        ends: list[tuple[float, Any, BaseException | None]] = []
        while True:
            if ends:
                started = min([started + race.delay, *self._settled(ends)])
            self._clock.now = started
            if any(error is None and end <= started for end, _, error in ends):
                break
            call = next(calls, None)  # as the other shells: asked for when it is to begin
            if call is None:
                break
            result, error = self._aside(race.proceed, call)
            ends.append((self._clock(), result, error))
        assert ends, "a race without calls"
        good = [each for each in ends if each[2] is None]
        end, winner, failure = min(good or ends[-1:], key=lambda each: each[0])
        self._clock.now = max(each[0] for each in ends) if failure else end
        for _, loser, _ in good:
            if loser is not winner and isinstance(loser, Reply):
                loser.close()
        if failure is not None:
            raise failure
        self._answers.append(winner)
        return winner

    @staticmethod
    def _settled(ends: list[tuple[float, Any, BaseException | None]]) -> list[float]:
        """When all that were begun have failed, if they have."""
        return [] if any(error is None for _, _, error in ends) else [max(end for end, _, _ in ends)]

    def _aside(self, proceed: Any, call: Call) -> tuple[Any, BaseException | None]:
        """Perform ``call`` with answers of its own."""
        outer, self._answers = self._answers, []
        try:
            return self.perform(proceed, call)
        finally:
            self._answers = outer

    def _send(self, call: Call) -> Any:
        self.sent.append(call)
        item = next(self._script, None)
        assert item is not None, f"the script has no answer to attempt {len(self.sent)}"
        try:
            reply = item(call) if callable(item) else item
            if isinstance(reply, BaseException):
                raise reply
        except BaseException:
            call.close()
            raise
        self._clock.advance(getattr(reply, "seconds", 0.0))
        self._answers.append(reply)
        self._hold(reply, call)
        return reply

    def _drop(self, keep: Any = None) -> None:
        """Close what the layers asked for and did not return."""
        for answer in self._answers:
            if answer is not keep and isinstance(answer, Reply):
                answer.close()
        self._answers = []

    @staticmethod
    def _hold(reply: Any, call: Call) -> None:
        """Chain: closing the reply releases this call and whatever was held before it."""
        if call.endpoint is None and call.closers is None:
            return
        if isinstance(reply, Reply) and not reply.closed:
            inner, reply.call = reply.call, call
            if inner is not None and inner is not call:
                call.on_close(inner.close)
        else:
            call.close()


def _at_once(awaitable: Any) -> Any:
    """What a coroutine comes to that waits for nothing: there is no loop."""
    steps = awaitable.__await__()
    try:
        steps.send(None)
    except StopIteration as done:
        return done.value
    awaitable.close()
    raise AssertionError(f"{awaitable!r} waits for something: a play has no event loop")
