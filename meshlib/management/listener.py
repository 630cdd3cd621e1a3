"""The pages at a port of their own, served by the control plane: few connections, one request each, small heads, short waits.

Processes that serve the same app share the port, as the system lets those of one user do; who answers is one of them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from meshlib.errors import ConfigError, PortInUse
from meshlib.management.pages import Answer, Ask
from meshlib.settings import Settings

CONNECTIONS: Final = 32
"""At once; more are closed unheard."""
HEAD: Final = 8192
"""Bytes of a request's head."""
WAIT: Final = 5.0
"""Seconds that a client has to send it, and to read the answer."""


class Listener:
    """Listens from the moment it is made; raises :class:`PortInUse`, or :class:`ConfigError`, where it cannot."""

    def __init__(self, settings: Settings, answer: Callable[[Ask], Awaitable[Answer]]) -> None:
        self._answer = answer
        self._socket = _bound(settings)
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open, self._closed = 0, False
        self.port: int = self._socket.getsockname()[1]

    async def serve(self) -> None:
        """Begin to answer, on the running loop, until it is closed: it may be already, or be as the server starts."""
        self._loop = asyncio.get_running_loop()
        if not self._closed:  # made without a pause, in which it might be cancelled: then nobody had it to close
            self._server = await asyncio.start_server(self._serve, sock=self._socket, limit=HEAD, start_serving=False)
        if self._closed or self._server is None:
            self._end()
        else:
            await self._server.start_serving()

    def close(self) -> None:
        """Stop; from any thread."""
        self._closed = True  # before the loop is looked at: serve() names it first
        with suppress(RuntimeError):  # it has been closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end)
                return
        self._socket.close()

    def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        self._socket.close()

    def forked(self) -> None:
        """In a child process: let go of the socket, or it would go on listening there when the parent has ended."""
        self._socket.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                await self._request(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client's business; TimeoutError is an OSError
        finally:
            self._open -= 1
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(WAIT):
            head = await reader.readuntil(b"\r\n\r\n")
        ask = parse(head, (writer.get_extra_info("peername") or ("",))[0])
        writer.write(formatted(await self._answer(ask), head=ask.method == "HEAD"))
        async with asyncio.timeout(WAIT):
            await writer.drain()


def parse(head: bytes, client: str) -> Ask:
    """What the head of a request asks for. Raises ValueError."""
    line, *fields = head.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ")
    named = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
    return Ask(method, target.partition("?")[0], named.get("authorization", ""), client)


def formatted(answer: Answer, *, head: bool = False) -> bytes:
    """The answer as HTTP/1.1."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in (*answer.headers, ("Connection", "close")))
    return f"HTTP/1.1 {answer.line}\r\n{fields}\r\n".encode("latin-1") + (b"" if head else answer.body)


def _bound(settings: Settings) -> socket.socket:
    host, port = settings.host, settings.management_port
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
        made.listen(CONNECTIONS)
    except OSError as problem:
        made.close()
        kind = PortInUse if problem.errno == errno.EADDRINUSE else ConfigError
        raise kind("MESH_MANAGEMENT_PORT", f"cannot listen on {host}:{port}: {problem.strerror}",
                   source=settings.sources.get("management_port", "code"), example="9090") from None  # fmt: skip
    made.setblocking(False)
    return made
