"""The provider's side, as one WSGI and one ASGI middleware: counts requests in flight, so that a stop can wait for them.
While draining, the ASGI one sends keep-alive clients elsewhere; it also hears of the server's start and end. What is done
for a request ends by its deadline."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final, TypeAlias

from meshlib import deadline

StartResponse: TypeAlias = Callable[..., Any]
WsgiApp: TypeAlias = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
SendMessage: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, SendMessage], Awaitable[None]]

log = logging.getLogger(__name__)


class InFlight:
    """Requests being served by this process. ``draining`` is set once it wants no more. ``on_serving``, if set, is called
    once, before the first request."""

    def __init__(self) -> None:
        self.draining = False
        self.on_serving: Callable[[], None] | None = None
        self._requests: set[object] = set()
        self._idle: threading.Condition | None = None

    def begin(self) -> object:
        """A request came; hand the result to :meth:`end`."""
        if self.on_serving is not None:
            self.serving()
        request = object()
        self._requests.add(request)
        return request

    def end(self, request: object) -> None:
        """Its answer is complete, or it failed. A second time does nothing."""
        self._requests.discard(request)
        if self._idle is not None and not self._requests:
            with self._idle:
                self._idle.notify_all()

    def serving(self) -> None:
        """This process serves, or is about to."""
        on_serving, self.on_serving = self.on_serving, None
        if on_serving is not None:
            on_serving()

    def __len__(self) -> int:
        return len(self._requests)

    def forked(self) -> None:
        """In a child process: what the parent serves is none of its business. Apps that are wrapped already count here."""
        self.draining, self._requests, self._idle = False, set(), None

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is in flight, at most ``timeout`` seconds; False when time ran out."""
        deadline = time.monotonic() + timeout
        # Made only now: gevent may have patched the process since it was forked, and a lock of before stops all greenlets.
        idle = self._idle = self._idle or threading.Condition()
        with idle:
            while self._requests and (left := deadline - time.monotonic()) > 0:
                idle.wait(min(left, 0.1))  # a request may end between the look and the wait
        return not self._requests


class _Body:
    """A WSGI answer that ends its request when the server closes it."""

    def __init__(self, body: Iterable[bytes], end: Callable[[], object]) -> None:
        self._body, self._end = body, end

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._end()


def wsgi(app: WsgiApp, in_flight: InFlight) -> WsgiApp:
    """``app`` with its requests counted; PEP 3333, which keeps ``Connection: close`` for the server to send: wsgiref and
    waitress answer 500 to an app that does."""

    def wrapped(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = in_flight.begin()
        try:
            body = app(environ, start_response)
        except BaseException:
            in_flight.end(request)
            raise
        return _Body(body, lambda: in_flight.end(request))

    return wrapped


def asgi(app: AsgiApp, in_flight: InFlight, on_stopped: Callable[[], Awaitable[object]] | None = None) -> AsgiApp:
    """``app`` with its HTTP requests counted; websockets pass through; ASGI 3. ``on_stopped`` is awaited when the server has
    stopped to accept, before the app hears of it."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Receive, send: SendMessage) -> None:
        if scope["type"] == "lifespan":
            await _Lifespan(in_flight, on_stopped, receive, send).of(app, scope)
            return
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request = in_flight.begin()
        may_hint = scope.get("http_version", "1.1").startswith("1")  # HTTP/2 has no such header

        async def tell(message: Message) -> None:
            if in_flight.draining and may_hint and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            await app(scope, receive, tell)
        finally:
            in_flight.end(request)

    return wrapped


class _Lifespan:
    """The app's lifespan, overheard. An app that has none, which it says by raising or returning before it has listened
    (ASGI's way), gets one from us, so that we hear of the end: servers that end by the signal they got run no ``atexit``."""

    def __init__(
        self, in_flight: InFlight, on_stopped: Callable[[], Awaitable[object]] | None, receive: Receive, send: SendMessage
    ) -> None:
        self._in_flight, self._on_stopped, self._receive, self._send = in_flight, on_stopped, receive, send
        self._listened = False

    async def of(self, app: AsgiApp, scope: MutableMapping[str, Any]) -> None:
        try:
            await app(scope, self._hear, self._tell)
        except Exception as problem:
            if self._listened:
                raise
            log.debug("the app has no lifespan: %r", problem)
        if not self._listened:
            await self._hear()
            await self._tell({"type": "lifespan.startup.complete"})
            await self._hear()
            await self._tell({"type": "lifespan.shutdown.complete"})

    async def _hear(self) -> Message:
        self._listened = True
        message = await self._receive()
        if message["type"] == "lifespan.shutdown" and self._on_stopped is not None:
            await self._on_stopped()
        return message

    async def _tell(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "lifespan.startup.complete":
            self._in_flight.serving()


# -- deadlines: what a request leaves of its caller's time

_ENVIRON: Final = "HTTP_" + deadline.HEADER.upper().replace("-", "_")
_FIELD: Final = deadline.HEADER.lower().encode("ascii")
_TOO_LATE: Final = json.dumps({
    "type": "about:blank", "title": "Gateway Timeout", "status": 504, "detail": "the deadline of the request has passed",
}).encode()  # fmt: skip
_PROBLEM: Final = "application/problem+json"  # RFC 9457


def timed_wsgi(app: WsgiApp) -> WsgiApp:
    """``app``, in which calls (and the making of the body) are bound by the deadline that a request brings in its header
    ``X-Mesh-Deadline``; a request whose time is over is answered with 504 and a problem document."""

    def wrapped(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        left = deadline.seconds_of(environ.get(_ENVIRON, ""))
        if left == 0:
            start_response("504 Gateway Timeout", [("Content-Type", _PROBLEM), ("Content-Length", str(len(_TOO_LATE)))])
            return [_TOO_LATE]
        # Set even when it is none: a thread serves one request after the other, and a body may not have been closed.
        before = deadline.enter(None if left is None else deadline.now() + left)
        try:
            body = app(environ, start_response)
        except BaseException:
            deadline.enter(before)
            raise
        return _Body(body, lambda: deadline.enter(before))

    return wrapped


def timed_asgi(app: AsgiApp) -> AsgiApp:
    """The same for ASGI. Tasks that the app begins inherit the deadline: ``meshlib.until(None)`` frees those that outlive the
    request."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Receive, send: SendMessage) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        found = b",".join(value for name, value in scope.get("headers", ()) if name == _FIELD)
        left = deadline.seconds_of(found.decode("latin-1"))
        if left == 0:
            headers = [(b"content-type", _PROBLEM.encode()), (b"content-length", str(len(_TOO_LATE)).encode())]
            await send({"type": "http.response.start", "status": 504, "headers": headers})
            await send({"type": "http.response.body", "body": _TOO_LATE})
            return
        with deadline.until(None if left is None else deadline.now() + left):
            await app(scope, receive, send)

    return wrapped
