"""Send, over httpx2: one connection pool per endpoint, and the one table that turns an engine's error into ours.

:class:`Engine` serves the blocking shell, :class:`AsyncEngine` the asyncio one. Both speak to an instance through an httpx2
transport made by a factory, so that tests and embedded apps can put a mock or a WSGI/ASGI app there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, TypeAlias, TypeVar

import httpx2

from meshlib.addressing import Addressing
from meshlib.balance.endpoint import Endpoint
from meshlib.errors import (
    AttemptError,
    AttemptTimeout,
    CallError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
)
from meshlib.flow import Call
from meshlib.model import Instance
from meshlib.settings import Settings

MakeTransport: TypeAlias = Callable[[Instance], httpx2.BaseTransport]
MakeAsyncTransport: TypeAlias = Callable[[Instance], httpx2.AsyncBaseTransport]
Clock: TypeAlias = Callable[[], float]
P = TypeVar("P")

BUFFER: Final = "meshlib.buffer"
"""Request extension: read the whole body as part of the attempt, so that a connection lost in it can be failed over."""

INFINITE: Final = float("inf")

INSTANCE: Final = "meshlib.instance"
"""Response extension: the :class:`~meshlib.model.Instance` that answered."""

TRICKLE: Final = 0.05
"""Seconds beyond its deadline after which an asyncio call is ended whatever still comes in."""

# Most specific first: what is known of the bytes decides what may be repeated.
_ERRORS: tuple[tuple[type[Exception], type[AttemptError], bool], ...] = (
    (httpx2.ConnectTimeout, ConnectFailed, True),
    (httpx2.ConnectError, ConnectFailed, True),
    (httpx2.PoolTimeout, AttemptTimeout, True),
    (httpx2.TimeoutException, AttemptTimeout, False),
    (httpx2.NetworkError, ConnectionLost, False),
    (httpx2.RemoteProtocolError, ConnectionLost, False),
)


def translate(problem: httpx2.HTTPError, call: Call) -> CallError:
    """``problem`` of the engine, in our terms."""
    instance = call.endpoint.instance if call.endpoint else None
    where = f"{call.target} at {instance.netloc}" if instance else str(call.target)
    detail = str(problem) or type(problem).__name__
    for engine, ours, unsent in _ERRORS:
        if isinstance(problem, engine):
            error = ours(f"{call.method} {where}: {detail}", service=call.target, instance=instance)
            error.unsent, error.endpoint = unsent, call.endpoint
            return error
    return CallError(f"{call.method} {where}: {detail}", service=call.target, instance=instance)


class Held(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that releases what its call holds when it is closed, or dropped, and fails with our errors."""

    def __init__(self, stream: Any, call: Call) -> None:
        self._stream, self._call = stream, call

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except httpx2.HTTPError as problem:
            raise translate(problem, self._call) from problem

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx2.HTTPError as problem:
            raise translate(problem, self._call) from problem

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._call.close()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._call.close()

    def __del__(self) -> None:
        self._call.close()


def hold(response: Any, call: Call) -> None:
    """Have ``call.close()`` run when ``response`` is closed; at once when it is already, or in memory."""
    if not isinstance(response, httpx2.Response) or response.is_closed or isinstance(response.stream, httpx2.ByteStream):
        call.close()
    else:
        response.stream = Held(response.stream, call)


def hasten(call: Call, now: float) -> None:
    """Leave reading a body no more time than the call has."""
    timeouts = call.extensions.get("timeout")
    if call.deadline is not None and timeouts:
        timeouts["read"] = max(0.001, min(timeouts.get("read") or INFINITE, call.deadline - now))


def check(call: Call, now: float) -> None:
    """Raise :class:`DeadlineExceeded` when the call has no time left: a body may trickle in for ever."""
    if call.deadline is not None and now > call.deadline:
        raise late(call)


def late(call: Call) -> DeadlineExceeded:
    """The error for an answer that did not come whole in time."""
    instance = call.endpoint.instance if call.endpoint else None
    text = f"{call.method} {call.target}: no time is left to read the answer"
    return DeadlineExceeded(text, service=call.target, instance=instance)


def _collect(stream: Any, call: Call, clock: Clock) -> bytes:
    chunks = []
    try:
        hasten(call, clock())
        for chunk in stream:
            chunks.append(chunk)
            check(call, clock())
    finally:
        stream.close()
    return b"".join(chunks)


async def _exchange(pool: httpx2.AsyncBaseTransport, request: httpx2.Request, call: Call, clock: Clock) -> httpx2.Response:
    response = await pool.handle_async_request(request)
    if BUFFER in call.extensions and not response.is_closed:
        response.stream = httpx2.ByteStream(await _acollect(response.stream, call, clock))
    return response


async def _acollect(stream: Any, call: Call, clock: Clock) -> bytes:
    chunks = []
    try:
        hasten(call, clock())
        async for chunk in stream:
            chunks.append(chunk)
            check(call, clock())
    finally:
        await stream.aclose()
    return b"".join(chunks)


class Engine:
    """Performs calls in the caller's thread."""

    def __init__(self, settings: Settings, make: MakeTransport | None = None, clock: Clock | None = None) -> None:
        self._clock = clock or time.monotonic
        self._addressing = Addressing(settings)
        self._make = make or (lambda instance: httpx2.HTTPTransport(**self._addressing.options(instance)))
        self._pools: dict[Endpoint, httpx2.BaseTransport] = {}

    hold = staticmethod(hold)

    def send(self, call: Call) -> httpx2.Response:
        """See :class:`meshlib.flow.Sender`."""
        endpoint = call.endpoint
        assert endpoint is not None
        pool = self._pools.get(endpoint) or self._open(endpoint)
        request = self._addressing.request(call)
        try:
            response = pool.handle_request(request)
            if BUFFER in call.extensions and not response.is_closed:
                response.stream = httpx2.ByteStream(_collect(response.stream, call, self._clock))
        except httpx2.HTTPError as problem:
            raise translate(problem, call) from problem
        response.request = request
        response.extensions[INSTANCE] = endpoint.instance
        return response

    def drop(self, response: Any) -> None:
        """See :class:`meshlib.flow.Sender`."""
        with suppress(httpx2.HTTPError, CallError):
            response.close()

    def _open(self, endpoint: Endpoint) -> httpx2.BaseTransport:
        made = self._make(endpoint.instance)
        pool = self._pools.setdefault(endpoint, made)
        if pool is not made:  # another thread was faster
            made.close()
        return pool

    def discard(self, endpoint: Endpoint) -> None:
        """Close the connections to an endpoint that is gone, or that nobody calls any more."""
        self._addressing.forget(endpoint)
        pool = _unused(self._pools, endpoint)
        if pool is not None:
            pool.close()

    def forked(self) -> None:
        """In a child process: abandon the parent's connections without closing them."""
        self._pools = {}
        self._addressing.forked()

    def close(self) -> None:
        """Close all connections, whoever uses them."""
        for endpoint in list(self._pools):
            self._addressing.forget(endpoint)
            pool = self._pools.pop(endpoint, None)
            if pool is not None:
                pool.close()


class AsyncEngine:
    """Performs calls in asyncio tasks, with connection pools per event loop: a socket belongs to its loop."""

    def __init__(self, settings: Settings, make: MakeAsyncTransport | None = None, clock: Clock | None = None) -> None:
        self._clock = clock or time.monotonic
        self._addressing = Addressing(settings)
        self.make = make or (lambda instance: httpx2.AsyncHTTPTransport(**self._addressing.options(instance)))
        self._loops: dict[asyncio.AbstractEventLoop, dict[Endpoint, httpx2.AsyncBaseTransport]] = {}

    hold = staticmethod(hold)
    _limit: Callable[[float], AbstractAsyncContextManager[object]] = staticmethod(asyncio.timeout)

    async def send(self, call: Call) -> httpx2.Response:
        """See :class:`meshlib.flow.AsyncSender`."""
        endpoint = call.endpoint
        assert endpoint is not None
        pools = self._loops.get(asyncio.get_running_loop())
        if pools is None:
            pools = self._adopt(asyncio.get_running_loop())
        pool = pools.get(endpoint)
        if pool is None:
            pool = pools.setdefault(endpoint, self.make(endpoint.instance))
        request = self._addressing.request(call)
        try:
            if call.deadline is None:
                response = await _exchange(pool, request, call, self._clock)
            else:
                # The engine's own time-outs speak first where nothing comes at all; this one ends what trickles.
                async with self._limit(call.deadline + TRICKLE - self._clock()):
                    response = await _exchange(pool, request, call, self._clock)
        except httpx2.HTTPError as problem:
            raise translate(problem, call) from problem
        except TimeoutError as problem:
            raise late(call) from problem
        response.request = request
        response.extensions[INSTANCE] = endpoint.instance
        return response

    async def drop(self, response: Any) -> None:
        """See :class:`meshlib.flow.AsyncSender`."""
        with suppress(httpx2.HTTPError, CallError):
            await response.aclose()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> dict[Endpoint, httpx2.AsyncBaseTransport]:
        for other in [known for known in list(self._loops) if known.is_closed()]:
            self._loops.pop(other, None)  # its sockets went with it
        return self._loops.setdefault(loop, {})

    def discard(self, endpoint: Endpoint) -> None:
        """Close the connections to an endpoint that is gone, or that nobody calls any more, each in its own loop."""
        self._addressing.forget(endpoint)
        for loop, pools in list(self._loops.items()):
            _close_in(loop, _unused(pools, endpoint))

    def forked(self) -> None:
        """In a child process: abandon the parent's loops and connections."""
        _abandoned.append(self._loops)
        self._loops = {}
        self._addressing.forked()

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        for pool in self._loops.pop(asyncio.get_running_loop(), {}).values():
            await pool.aclose()

    def close(self) -> None:
        """Close the connections of every loop, each in its own, whoever uses them."""
        for loop, pools in list(self._loops.items()):
            for endpoint in list(pools):
                self._addressing.forget(endpoint)
                _close_in(loop, pools.pop(endpoint, None))


# Of the parent, in a child process: a loop that is destroyed there unregisters its waking pipe from the epoll that both
# share, and the parent's loop sleeps on.
_abandoned: list[object] = []

_closing: set[asyncio.Task[None]] = set()


def _unused(pools: dict[Endpoint, P], endpoint: Endpoint) -> P | None:
    """Take out the pool of ``endpoint`` to be closed, unless an attempt has come there since somebody found it idle: it may be
    at these connections. An attempt is in flight before it looks for a pool, so what nobody had when it was taken out is
    nobody's."""
    while (pool := pools.pop(endpoint, None)) is not None and endpoint.in_flight:
        pools.setdefault(endpoint, pool)
        if endpoint.in_flight:  # whose end finds it again
            return None
    return pool


def _close_in(loop: asyncio.AbstractEventLoop, pool: httpx2.AsyncBaseTransport | None) -> None:
    if pool is not None and not loop.is_closed():
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(_close_soon, loop, pool)


def _close_soon(loop: asyncio.AbstractEventLoop, pool: httpx2.AsyncBaseTransport) -> None:
    task = loop.create_task(pool.aclose())
    _closing.add(task)  # the loop itself keeps only a weak reference
    task.add_done_callback(_closing.discard)
