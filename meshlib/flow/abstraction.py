"""What a call, an effect and a layer are, and what a shell needs of an engine."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

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


def tried_instances(endpoints: Sequence[Endpoint]) -> list[Any]:
    """The instances behind ``endpoints``, for error messages."""
    return [endpoint.instance for endpoint in endpoints]
