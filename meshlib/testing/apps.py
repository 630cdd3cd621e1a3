"""Providers inside the process: a WSGI app, an ASGI app or a function of the request, called as their server would."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

import httpx2
import msgspec

from meshlib import deadline, server
from meshlib.errors import ConfigError
from meshlib.threads import DaemonExecutor

log = logging.getLogger(__name__)

T = TypeVar("T")

Function: TypeAlias = Callable[[httpx2.Request], Any]
"""What a plain function is: it answers with a response, text or bytes, or anything that becomes JSON; None is 204."""
App: TypeAlias = Any
"""A WSGI app, an ASGI app or a :data:`Function`, ``def`` or ``async def``."""

HELPERS: Final = 16
"""Threads for apps that await, where a loop runs in the caller's already."""

_KINDS: Final = {1: "function", 2: "wsgi", 3: "asgi"}


def kind_of(app: App) -> str:
    """``wsgi``, ``asgi`` or ``function``, by the number of arguments it takes. Raises :class:`ConfigError`."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        parameters = None
    if parameters is not None:
        needed = [each for each in parameters if each.default is each.empty and each.kind <= each.POSITIONAL_OR_KEYWORD]
        if len(needed) in _KINDS:
            return _KINDS[len(needed)]
    raise ConfigError("app", f"{app!r:.60} is neither a WSGI app, an ASGI app nor a function of the request",
                      example='mesh.add("orders", lambda request: {"id": 7})')  # fmt: skip


class Hosted:
    """An app that answers requests of blocking and of async callers, in its own context: with the deadline that the request
    brings, and nothing of its caller's."""

    def __init__(self, app: App, clock: Callable[[], float], portal: Portal) -> None:
        self.kind, self._clock, self._portal = kind_of(app), clock, portal
        self._app = app
        if self.kind == "wsgi":
            self._wsgi = httpx2.WSGITransport(server.governed_wsgi(app))
        elif self.kind == "asgi":
            self._asgi = httpx2.ASGITransport(server.governed_asgi(app))

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        """The answer, for a blocking caller."""
        return contextvars.copy_context().run(self._answer, _plain(request, request.read()))

    async def aanswer(self, request: httpx2.Request) -> httpx2.Response:
        """The same for an async one."""
        request = _plain(request, await request.aread())
        with deadline.timed_by(self._clock), deadline.until(self._deadline(request)):
            if not self._awaits:
                return contextvars.copy_context().run(self._answer, request)
            return await self._async_answer(request)

    @property
    def _awaits(self) -> bool:
        return self.kind == "asgi" or (self.kind == "function" and _is_async(self._app))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        with deadline.timed_by(self._clock), deadline.until(self._deadline(request)):
            if self._awaits:
                return self._portal.run(lambda: self._async_answer(request))
            try:
                return self._blocking(request)
            except Exception as problem:  # noqa: BLE001 - whatever it is
                return crashed(request, problem)

    def _blocking(self, request: httpx2.Request) -> httpx2.Response:
        if self.kind == "function":
            return response_of(self._app(request))
        response = self._wsgi.handle_request(request)
        try:
            return _whole(response, b"".join(response.stream))  # type: ignore[arg-type]
        finally:
            response.close()

    async def _async_answer(self, request: httpx2.Request) -> httpx2.Response:
        try:
            if self.kind == "function":
                return response_of(await self._app(request))
            response = await self._asgi.handle_async_request(request)
            return _whole(response, b"".join([chunk async for chunk in response.stream]))  # type: ignore[union-attr]
        except Exception as problem:  # noqa: BLE001 - whatever it is
            return crashed(request, problem)

    def _deadline(self, request: httpx2.Request) -> float | None:
        left = deadline.seconds_of(request.headers.get(deadline.HEADER, ""))
        return None if left is None else self._clock() + left


def _plain(request: httpx2.Request, body: bytes) -> httpx2.Request:
    """``request`` as its server would read it: whole, with a URL like any other."""
    return httpx2.Request(request.method, str(request.url), headers=request.headers.raw, content=body)


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _whole(response: httpx2.Response, body: bytes) -> httpx2.Response:
    return httpx2.Response(response.status_code, headers=response.headers.raw, stream=httpx2.ByteStream(body))


def crashed(request: httpx2.Request, problem: Exception) -> httpx2.Response:
    """What a server answers for an app that raised: 500, and the traceback in its log. What a test asserts inside of an app is
    the test's."""
    if isinstance(problem, AssertionError):
        raise problem
    log.error("the app raised at %s %s", request.method, request.url.path, exc_info=problem)
    return httpx2.Response(500, stream=httpx2.ByteStream(f"{type(problem).__name__}: {problem}".encode()))


def response_of(value: Any) -> httpx2.Response:
    """The response that a function's ``value`` means."""
    if isinstance(value, httpx2.Response):
        return value
    if value is None:
        return httpx2.Response(204)
    if isinstance(value, bytes):
        return httpx2.Response(200, stream=httpx2.ByteStream(value))
    if isinstance(value, str):
        return httpx2.Response(
            200, headers={"content-type": "text/plain; charset=utf-8"}, stream=httpx2.ByteStream(value.encode())
        )
    dumped = value.model_dump_json().encode() if hasattr(value, "model_dump_json") else msgspec.json.encode(value)
    return httpx2.Response(200, headers={"content-type": "application/json"}, stream=httpx2.ByteStream(dumped))


class Portal:
    """Runs coroutines for blocking callers, on event loops of its own that it keeps; real time passes there."""

    def __init__(self) -> None:
        self._idle: list[asyncio.Runner] = []
        self._lock = threading.Lock()
        self._helpers = DaemonExecutor(HELPERS, "meshlib-testing-app")

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``work()``. Where a loop runs in this thread already, another thread does it, and is waited for."""
        context = contextvars.copy_context()
        if asyncio._get_running_loop() is None:
            return self._run(work, context)
        return self._helpers.submit(self._run, work, context).result()

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], context: contextvars.Context) -> T:
        with self._lock:
            runner = self._idle.pop() if self._idle else asyncio.Runner()
        try:
            return runner.run(work(), context=context)
        finally:
            with self._lock:
                self._idle.append(runner)

    def close(self) -> None:
        """Close the loops, and end the threads."""
        with self._lock:
            idle, self._idle = self._idle, []
        for runner in idle:
            if asyncio._get_running_loop() is None:
                runner.close()
            else:
                self._helpers.submit(runner.close).result()
        helpers, self._helpers = self._helpers, DaemonExecutor(HELPERS, "meshlib-testing-app")
        helpers.shutdown()
