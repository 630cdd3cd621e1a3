"""The start and the end of a server, as an ASGI app hears of them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from meshlib.server.in_flight import InFlight
from meshlib.server.types import AsgiApp, Message, Receive, Scope, SendMessage

log = logging.getLogger(__name__)


class Lifespan:
    """The app's lifespan, overheard. An app that has none, which it says by raising or returning before it has listened
    (ASGI's way), gets one from us, so that we hear of the end: servers that end by the signal they got run no ``atexit``."""

    def __init__(
        self, in_flight: InFlight, on_stopped: Callable[[], Awaitable[object]] | None, receive: Receive, send: SendMessage
    ) -> None:
        self._in_flight, self._on_stopped, self._receive, self._send = in_flight, on_stopped, receive, send
        self._listened = False

    async def of(self, app: AsgiApp, scope: Scope) -> None:
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
