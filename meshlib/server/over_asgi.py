"""The ASGI side: requests in flight, and the lifespan. While draining, keep-alive clients are sent elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from meshlib.server.in_flight import InFlight
from meshlib.server.lifespan import Lifespan
from meshlib.server.types import AsgiApp, Message, Receive, Scope, SendMessage


def asgi(app: AsgiApp, in_flight: InFlight, on_stopped: Callable[[], Awaitable[object]] | None = None) -> AsgiApp:
    """``app`` with its HTTP requests counted; websockets pass through; ASGI 3. ``on_stopped`` is awaited when the server has
    stopped to accept, before the app hears of it."""

    async def wrapped(scope: Scope, receive: Receive, send: SendMessage) -> None:
        if scope["type"] == "lifespan":
            await Lifespan(in_flight, on_stopped, receive, send).of(app, scope)
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
