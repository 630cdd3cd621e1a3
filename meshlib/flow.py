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
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from meshlib.errors import DeadlineExceeded

if TYPE_CHECKING:
    from meshlib.balance.endpoint import Endpoint
    from meshlib.model import ServiceUrl

log = logging.getLogger(__name__)

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
"""Methods that may be sent twice (RFC 9110, section 9.2.2)."""

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
    ``deadline`` a monotonic time or None; ``endpoint`` the instance chosen for this attempt; ``tried`` the endpoints of
    earlier attempts of the same call, of which ``last_resorts`` were ejected when they were tried; ``arguments`` those of
    a declared method by their Python names, defaults included, None for any other call.
    """

    target: ServiceUrl
    method: str
    path: bytes
    headers: RawHeaders = msgspec.field(default_factory=list)
    body: Any = None
    replayable: bool = True
    extensions: dict[str, Any] = msgspec.field(default_factory=dict)
    deadline: float | None = None
    endpoint: Endpoint | None = None
    tried: tuple[Endpoint, ...] = ()
    last_resorts: int = 0
    closers: list[Callable[[], object]] | None = None
    arguments: Mapping[str, Any] | None = None

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
        again = self.__copy__()
        again.tried, again.last_resorts = (*self.tried, endpoint), self.last_resorts + last_resort
        if self.closers is None:
            self.closers = []
        again.closers = self.closers  # one list: what is handed to either is released with the call
        return again

    def hastened(self, now: float) -> Call:
        """The same call with no time-out beyond what its deadline leaves at monotonic time ``now``. Raises
        :class:`~meshlib.errors.DeadlineExceeded` when that is nothing."""
        if self.deadline is None:
            return self
        left = self.deadline - now
        if left <= 0:
            raise DeadlineExceeded(f"{self.method} {self.target}: no time is left", service=self.target,
                                   tried=tried_instances(self.tried))  # fmt: skip
        again = self.__copy__()
        limits = self.extensions.get("timeout") or {}
        again.extensions = {**self.extensions, "timeout": {
            name: left if limit is None else min(left, limit) for name, limit in limits.items()
        }}  # fmt: skip
        return again

    @property
    def idempotent(self) -> bool:
        """True when it may be repeated after bytes of it were sent."""
        return self.method in IDEMPOTENT and self.replayable

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
        closers, self.closers = self.closers, None
        while closers:
            try:
                closers.pop()()
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


Effect: TypeAlias = Send | Sleep | Wait
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
    return lambda call: layer(call, proceed)


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
    answers: tuple[Any, ...] = ()
    try:
        effect = next(flow)
        while True:
            try:
                if type(effect) is Send:
                    answer = _send(effect.call, sender)
                    answers += (answer,)
                else:
                    answer = _pause(effect, sleep)
            except BaseException as problem:  # noqa: BLE001 - it is the flow's to handle, cancellation included
                effect = flow.throw(problem)
            else:
                effect = flow.send(answer)
    except StopIteration as done:
        if len(answers) > 1 or answers != (done.value,):
            _drop(answers, sender, done.value)
        if call.closers is not None:
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


def _pause(effect: Effect, sleep: Callable[[float], None]) -> Any:
    if type(effect) is Sleep:
        return sleep(effect.seconds)
    assert type(effect) is Wait
    try:
        effect.future.exception(effect.timeout)
    except TimeoutError:
        return False
    except futures.CancelledError:
        pass  # settled as well: the layer looks for what it waited for
    return True


def _drop(answers: tuple[Any, ...], sender: Sender, keep: Any = None) -> None:
    for answer in answers:
        if answer is not keep:
            sender.drop(answer)


async def arun(proceed: Next, call: Call, sender: AsyncSender) -> Any:
    """Perform ``proceed(call)`` in this task and return its response. Other responses it asked for are closed."""
    flow = proceed(call)
    answers: tuple[Any, ...] = ()
    try:
        effect = next(flow)
        while True:
            try:
                if type(effect) is Send:
                    answer = await _asend(effect.call, sender)
                    answers += (answer,)
                else:
                    answer = await _apause(effect)
            except BaseException as problem:  # noqa: BLE001 - it is the flow's to handle, cancellation included
                effect = flow.throw(problem)
            else:
                effect = flow.send(answer)
    except StopIteration as done:
        if len(answers) > 1 or answers != (done.value,):
            await _adrop(answers, sender, done.value)
        if call.closers is not None:
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


async def _apause(effect: Effect) -> Any:
    if type(effect) is Sleep:
        return await asyncio.sleep(effect.seconds)
    assert type(effect) is Wait
    return await _wait(effect)


async def _adrop(answers: tuple[Any, ...], sender: AsyncSender, keep: Any = None) -> None:
    for answer in answers:
        if answer is not keep:
            await sender.drop(answer)


async def _wait(effect: Wait) -> bool:
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
