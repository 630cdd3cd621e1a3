"""The abstraction: a call is a generator that yields effects, a layer wraps one, a shell performs them.

A layer is written once::

    def bulkhead(call: Call, proceed: Next) -> Flow:
        with permits.acquire():
            return (yield from proceed(call))

and runs under :func:`run` (blocking), :func:`arun` (asyncio) and :func:`meshlib.testing.play` (a script). Layers decide;
they never do I/O, never sleep and hold no lock across a ``yield``.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from concurrent import futures
from contextlib import AsyncExitStack, suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from meshlib.background import BACKGROUND
from meshlib.errors import ConfigError

if TYPE_CHECKING:
    from meshlib.balance.endpoint import Endpoint
    from meshlib.model import ServiceUrl
    from meshlib.subsets import Subset

log = logging.getLogger(__name__)

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
"""Methods that may be sent twice (RFC 9110, section 9.2.2)."""

FUNCTION = "CALL"
"""The method of a call of a plain function."""

INCOMING = "meshlib.incoming"
"""Among the extensions of a request that is served here: its errors are the app's."""

IDEMPOTENCY_KEY = b"Idempotency-Key"
"""The header by which a provider knows that it has done this work already (draft-ietf-httpapi-idempotency-key-header)."""

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]


class Response(Protocol):
    """What layers may know of an answer; the shells hand out the engine's own response."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Any: ...


class Call(msgspec.Struct, eq=False):
    """One call as the layers see it. Treat it as frozen: :meth:`to` makes the copy that one attempt works on.

    ``target`` names the service; ``path`` is the raw request target (path and query, ASCII bytes); ``headers`` the raw
    header list, in which ``Host`` is the first or (as usual) left to the engine; ``body`` the engine's byte stream;
    ``deadline`` a monotonic time or None, ``attempt_timeout`` the seconds that one attempt may take; ``endpoint`` the
    instance chosen for this attempt; ``tried`` the endpoints of earlier attempts, which it must not go to again, of which
    ``last_resorts`` were ejected when they were tried; ``visited`` those that all attempts of a call which is repeated went
    to, one list that they share: another attempt goes elsewhere if it can. It is None where nothing above repeats.
    ``again`` gets the endpoint of each attempt but the first, one list of all copies; None where nobody counts them.
    ``arguments`` are those of a declared method or a function by their Python names, defaults included, None for any other
    call; ``subset`` the instances that a rule wants it to go to, None for any.
    """

    target: ServiceUrl
    method: str
    path: bytes
    headers: RawHeaders = msgspec.field(default_factory=list)
    body: Any = None
    replayable: bool = True
    extensions: dict[str, Any] = msgspec.field(default_factory=dict)
    deadline: float | None = None
    attempt_timeout: float | None = None
    endpoint: Endpoint | None = None
    tried: tuple[Endpoint, ...] = ()
    last_resorts: int = 0
    visited: list[Endpoint] | None = None
    again: list[Endpoint] | None = None
    closers: list[Callable[[], object]] | None = None
    arguments: Mapping[str, Any] | None = None
    subset: Subset | None = None

    if TYPE_CHECKING:

        def __copy__(self) -> Call: ...  # of msgspec's, in C; copy.copy() costs as much again to find it

    def to(self, endpoint: Endpoint) -> Call:
        """The copy of this call that one attempt at ``endpoint`` works on. It is in flight there until it is closed, and
        has closers of its own."""
        attempt = self.__copy__()
        attempt.endpoint, attempt.closers = endpoint, None
        endpoint.in_flight.add(attempt)
        return attempt

    def excluding(self, endpoint: Endpoint, *, last_resort: bool = False) -> Call:
        """The same call, never to be sent to ``endpoint`` again; ``last_resort`` when that was an ejected one."""
        again = self.alike()
        again.tried, again.last_resorts = (*self.tried, endpoint), self.last_resorts + last_resort
        return again

    def alike(self) -> Call:
        """A copy to change something in. What is handed to either to release is released with the call."""
        if self.closers is None:
            self.closers = []
        return self.__copy__()

    def apart(self, visited: list[Endpoint]) -> Call:
        """The copy that a layer which repeats gives to what is below it, once per attempt: with closers of its own, so that
        what a failed attempt holds is released with :meth:`close` when it is over. What the last one holds is handed to the
        call (:meth:`adopt`)."""
        attempt = self.__copy__()
        attempt.visited, attempt.closers = visited, None
        return attempt

    def adopt(self, attempt: Call) -> None:
        """The answer to ``attempt`` is the call's: hold what it holds until that is closed."""
        if attempt.closers:
            self.on_close(attempt.close)

    @property
    def idempotent(self) -> bool:
        """True when it may be repeated after bytes of it were sent: by its method, or because it has a key by which the
        provider will know it again."""
        return self.replayable and (self.method in IDEMPOTENT or self.keyed)

    @property
    def keyed(self) -> bool:
        """True when it has an ``Idempotency-Key``."""
        wanted = IDEMPOTENCY_KEY.lower()
        return any(name.lower() == wanted for name, _ in self.headers)

    def on_close(self, release: Callable[[], object]) -> None:
        """Have ``release`` called once: when the body of the answer is closed, or when the call ends without one.

        A layer that repetition stands above is entered once per attempt: it releases what a failed one holds itself.
        """
        if self.closers is None:
            self.closers = [release]
        else:
            self.closers.append(release)

    def close(self) -> None:
        """Release what it holds: its place in flight, and what :meth:`on_close` collected, newest first; a second time does
        nothing. A release that fails stops no other."""
        if self.endpoint is not None:
            self.endpoint.release(self)
        closers = self.closers  # which stays: a copy that is :meth:`alike` has the same one, and may get more to release
        while closers:
            with suppress(IndexError):  # another thread was as quick
                self._release(closers.pop())

    def _release(self, release: Callable[[], object]) -> None:
        try:
            release()
        except Exception:
            log.exception("releasing what a call to %s held failed", self.target)


class Send(msgspec.Struct, eq=False):
    """Effect: perform this call for real; answered with the response."""

    call: Call


class Sleep(msgspec.Struct, eq=False):
    """Effect: wait ``seconds`` (float)."""

    seconds: float


class Wait(msgspec.Struct, eq=False):
    """Effect: wait until the control plane has resolved ``future``, at most ``timeout`` seconds; answered with True when
    it has been. A cold start, say. The future itself is never cancelled."""

    future: futures.Future[Any]
    timeout: float


class Close(msgspec.Struct, eq=False):
    """Effect: close ``response``, which was asked for and will not be returned: before another attempt is made, say."""

    response: Any


class Race(msgspec.Struct, eq=False):
    """Effect: perform ``proceed`` for several ``calls`` side by side; answered with the first response. Each call is begun
    ``delay`` seconds (float) after the one before, if there is no response yet, or as soon as all that were begun have failed;
    when all have failed, the last error is raised. Who loses is cancelled: a task at once, a thread when its attempt is over.
    """

    proceed: Callable[[Call], Flow]
    calls: Iterable[Call]
    delay: float


class Aside(msgspec.Struct, eq=False):
    """Effect: perform ``proceed(call)`` in the background and drop its answer. The flow goes on at once, whatever becomes of
    it; answered with False when so much is under way there that it was not begun."""

    proceed: Callable[[Call], Flow]
    call: Call


class Await(msgspec.Struct, eq=False):
    """Effect: await ``awaitable``, which somebody's ``async def`` gave; answered with what it comes to. A blocking flow cannot:
    :class:`~meshlib.errors.ConfigError`."""

    awaitable: Awaitable[Any]


class Given(msgspec.Struct, eq=False, frozen=True):
    """An answer that a layer had ready, and no instance gave: ``value`` is what the caller gets, ``source`` who gave it
    (``"fallback"``). To the layers above it is an answer of status 200; who made the call takes the value out."""

    value: Any
    source: str = ""

    @property
    def status_code(self) -> int:
        """As the engine's response calls it."""
        return 200

    @property
    def headers(self) -> Mapping[str, str]:
        """None."""
        return {}


Effect: TypeAlias = Send | Sleep | Wait | Close | Race | Aside | Await
TIMED = (Sleep, Wait, Race, Aside)
"""Those in which time passes: an engine with a time of its own performs them itself, by ``perform(effect)``."""
Flow: TypeAlias = Generator[Effect, Any, Any]
Next: TypeAlias = Callable[[Call], Flow]


class Layer(Protocol):
    """A policy: sees the call on its way in and the response (or error) on its way out."""

    def __call__(self, call: Call, proceed: Next) -> Flow: ...


def send(call: Call) -> Flow:
    """The innermost flow."""
    return (yield Send(call))


def compose(layers: Iterable[Layer], innermost: Next = send) -> Next:
    """Stack ``layers``, outermost first, on ``innermost``."""
    proceed = innermost
    for layer in reversed(list(layers)):
        proceed = _around(layer, proceed)
    return proceed


def _around(layer: Layer, proceed: Next) -> Next:
    # A method that is bound already is called in two thirds of the time that an object with a __call__ takes.
    enter = layer if isinstance(layer, FunctionType) else layer.__call__
    return lambda call: enter(call, proceed)


class Sender(Protocol):
    """What the blocking shell needs of an engine."""

    def send(self, call: Call) -> Any:
        """Perform ``call``; raise :class:`~meshlib.errors.AttemptError` when there is no answer."""
        ...

    def hold(self, response: Any, call: Call) -> None:
        """Have ``call.close()`` run when ``response`` is closed."""
        ...

    def drop(self, response: Any) -> None:
        """Close ``response``, which a layer asked for and did not return."""
        ...


class AsyncSender(Protocol):
    """The same for the asyncio shell; ``hold`` does no I/O, so it is the same function."""

    def send(self, call: Call) -> Awaitable[Any]: ...
    def hold(self, response: Any, call: Call) -> None: ...
    def drop(self, response: Any) -> Awaitable[None]: ...


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
            _drop(answers, sender, done.value)
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
        return _collected(own(effect), effect, answers)
    if type(effect) is Sleep:
        return sleep(effect.seconds)
    if type(effect) is Wait:
        return _wait(effect)
    if type(effect) is Close:
        _forget(answers, effect.response)
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


def _collected(answer: Any, effect: Effect, answers: list[Any]) -> Any:
    if type(effect) is Race:
        answers.append(answer)
    return answer


def _forget(answers: list[Any], response: Any) -> None:
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
    for answer in answers:
        if answer is not keep:
            sender.drop(answer)


async def arun(proceed: Next, call: Call, sender: AsyncSender) -> Any:
    """Perform ``proceed(call)`` in this task and return its response. Other responses it asked for are closed."""
    flow = proceed(call)
    answers: list[Any] = []
    try:
        effect = next(flow)
        while True:
            try:
                if type(effect) is Send:
                    answer = await _asend(effect.call, sender)
                    answers.append(answer)
                else:
                    answer = await _aperform(effect, sender, answers)
            except BaseException as problem:  # noqa: BLE001 - it is the flow's to handle, cancellation included
                effect = flow.throw(problem)
            else:
                effect = flow.send(answer)
    except StopIteration as done:
        if answers and (len(answers) > 1 or answers[0] is not done.value):
            try:
                await _adrop(answers, sender, done.value)
            except BaseException:  # cancelled: nobody gets the answer
                call.close()
                await _adrop([each for each in answers if each is done.value], sender)
                raise
        if call.closers:
            sender.hold(done.value, call)
        return done.value
    except BaseException:
        call.close()
        await _adrop(answers, sender)
        raise


async def _asend(call: Call, sender: AsyncSender) -> Any:
    try:
        answer = await sender.send(call)
    except BaseException:
        call.close()
        raise
    if call.endpoint is not None or call.closers is not None:
        sender.hold(answer, call)
    return answer


async def _first(tasks: set[asyncio.Task[Any]], timeout: float | None) -> Iterable[asyncio.Task[Any]]:  # noqa: ASYNC109
    return (await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED))[0]


First: TypeAlias = Callable[[set[asyncio.Task[Any]], float | None], Awaitable[Iterable[asyncio.Task[Any]]]]


async def araced(race: Race, sender: AsyncSender, first: First = _first) -> Any:
    """The first answer of ``race``. ``first(tasks, timeout)`` waits until some of them are done, and returns them."""
    running = set[asyncio.Task[Any]]()
    try:
        winner = await _awinner(race, sender, running, first)
    except BaseException:
        await _lose(running, sender)
        raise
    try:
        await _lose(running, sender)
    except BaseException:  # cancelled: nobody gets the answer
        await sender.drop(winner)
        raise
    return winner


async def _awinner(race: Race, sender: AsyncSender, running: set[asyncio.Task[Any]], first: First) -> Any:
    """The first answer; ``running`` has the tasks whose answers, if they come to any, are to be dropped."""
    calls = iter(race.calls)
    failure: BaseException | None = None
    winner: asyncio.Task[Any] | None = None
    try:
        while winner is None:
            call = next(calls, None)
            if call is not None:
                running.add(asyncio.create_task(arun(race.proceed, call, sender)))
            elif not running:
                assert failure is not None, "a race without calls"
                raise failure
            for task in await first(running, None if call is None else race.delay):
                running.discard(task)
                if task.cancelled() or task.exception() is not None:
                    failure = asyncio.CancelledError() if task.cancelled() else task.exception()
                elif winner is None:
                    winner = task
                else:
                    running.add(task)  # a dead heat: the second is closed with the losers
        return winner.result()
    finally:
        failure = None  # its traceback leads here: no cycle


async def _lose(tasks: set[asyncio.Task[Any]], sender: AsyncSender) -> None:
    """Cancel ``tasks`` and close what they have come to. A cancellation meanwhile is passed on after that, and at once to
    those that take their time over theirs."""
    cancelled = False
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            cancelled = True
    await _adrop([task.result() for task in tasks if not task.cancelled() and task.exception() is None], sender)
    if cancelled:
        raise asyncio.CancelledError


async def _aperform(effect: Effect, sender: AsyncSender, answers: list[Any]) -> Any:
    own = getattr(sender, "perform", None)
    if own is not None and type(effect) in TIMED:
        return _collected(await own(effect), effect, answers)
    if type(effect) is Sleep:
        return await asyncio.sleep(effect.seconds)
    if type(effect) is Wait:
        return await _await(effect)
    if type(effect) is Close:
        _forget(answers, effect.response)
        await sender.drop(effect.response)
        return None
    if type(effect) is Aside:
        aside = effect
        return BACKGROUND.begin(lambda: _aaside(aside, sender))
    if type(effect) is Await:
        return await effect.awaitable
    assert type(effect) is Race, effect
    answers.append(await araced(effect, sender))
    return answers[-1]


async def _aaside(effect: Aside, sender: AsyncSender) -> None:
    await sender.drop(await arun(effect.proceed, effect.call, sender))


async def _adrop(answers: list[Any], sender: AsyncSender, keep: Any = None) -> None:
    async with AsyncExitStack() as stack:  # each, also if closing another fails or is cancelled
        for answer in answers:
            if answer is not keep:
                stack.push_async_callback(sender.drop, answer)


async def _await(effect: Wait) -> bool:
    # Not asyncio.wrap_future: cancelling its wrapper cancels the source, which other callers wait for too.
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake(_: futures.Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(woken.set)

    effect.future.add_done_callback(wake)
    with suppress(TimeoutError):
        async with asyncio.timeout(effect.timeout):
            await woken.wait()
    return effect.future.done()


def tried_instances(endpoints: Sequence[Endpoint]) -> list[Any]:
    """The instances behind ``endpoints``, for error messages."""
    return [endpoint.instance for endpoint in endpoints]
