"""The httpx side: transports to mount on a client that exists, and ready clients, of httpx2 or of plain httpx.

The host of a request's URL names the service. What fails is raised as an error that is both ours and the library's
(``ConnectFailed`` is also an ``httpx2.ConnectError``), so that code which catches the one or the other goes on working.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, TypeAlias

import httpx2

from meshlib.answers import answer_from
from meshlib.client.stack import Stack
from meshlib.deadline import inherited
from meshlib.errors import AttemptTimeout, CallError, ConnectFailed, ConnectionLost, DeadlineExceeded, NoInstances
from meshlib.flow import AsyncSender, Call, Given, RawHeaders, Sender, arun, run
from meshlib.model import Instance, ServiceUrl
from meshlib.requests import Requests
from meshlib.transport import BUFFER, INSTANCE

StackOf: TypeAlias = Callable[[str], tuple[ServiceUrl, Stack]]
"""From the host of a URL to the service it names and the layers of its calls."""

_LIKE: tuple[tuple[type[CallError], str], ...] = (
    (ConnectFailed, "ConnectError"),
    (NoInstances, "ConnectError"),
    (AttemptTimeout, "ReadTimeout"),
    (DeadlineExceeded, "ReadTimeout"),
    (ConnectionLost, "ReadError"),
    (CallError, "TransportError"),
)


@cache
def _both(ours: Any, name: str, library: str) -> Any:
    """A class that is ``ours`` and the exception ``name`` of ``library`` ("httpx2" or "httpx")."""
    theirs = getattr(importlib.import_module(library), name)
    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__init__": _init, "request": None})


def _init(self: CallError, original: CallError, request: Any) -> None:
    Exception.__init__(self, *original.args)
    self.__dict__.update(original.__dict__)
    self.request = request  # type: ignore[attr-defined]


def foreign(error: CallError, request: Any) -> CallError:
    """``error`` as one that the library of ``request`` knows too: as what the engine raised, else as the nearest."""
    cause = error.__cause__
    if isinstance(cause, httpx2.TransportError):
        name = type(cause).__name__
    else:
        name = next(name for base, name in _LIKE if isinstance(error, base))
    ours: Any = type(error)  # mypy takes a class with its instances' __hash__ for unhashable
    twin: CallError = _both(ours, name, _library(request))(error, request)
    return twin.with_traceback(error.__traceback__)


def _library(request: Any) -> str:
    return "httpx2" if isinstance(request, httpx2.Request) else "httpx"


def call_of(request: Any, target: ServiceUrl) -> Call:
    """The call that ``request`` (of httpx2 or httpx) asks for. A ``Host`` that names the URL's host is left to the engine,
    which puts the instance's there; any other is the caller's wish."""
    url, stream, headers = request.url, request.stream, request.headers.raw
    if headers and headers[0][1] == url.raw_host and headers[0][0] == b"Host":
        del headers[0]  # the usual case; raw is a list of our own
    else:
        _put_host_first(headers, url.netloc)
    replayable = isinstance(stream, httpx2.ByteStream)
    if not replayable and not isinstance(stream, (httpx2.SyncByteStream, httpx2.AsyncByteStream)):
        replayable, stream = type(stream).__name__ == "ByteStream", Adapted(stream)
    return Call(target, request.method, url.raw_path, headers, stream, replayable, request.extensions, inherited())


def _put_host_first(headers: RawHeaders, netloc: bytes) -> None:
    hosts = [pair for pair in headers if pair[0].lower() == b"host"]
    wish = [pair for pair in hosts if pair[1] != netloc]
    headers[:] = wish[:1] + [pair for pair in headers if pair not in hosts]


class Adapted(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A byte stream of plain httpx for httpx2."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)


@cache
def _stream_class(library: str) -> Any:
    """The class of answers' bodies for ``library``: what fails under way is raised as one of its errors, too."""
    engine = importlib.import_module(library)

    class Body(engine.SyncByteStream, engine.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, stream: Any, request: Any) -> None:
            self._stream, self._request = stream, request

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._stream
            except CallError as error:
                raise foreign(error, self._request) from error

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for chunk in self._stream:
                    yield chunk
            except CallError as error:
                raise foreign(error, self._request) from error

        def close(self) -> None:
            self._stream.close()

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Body


def answer_to(request: Any, response: httpx2.Response) -> Any:
    """``response`` as the library of ``request`` wants it."""
    if _REDIRECTS <= response.status_code < _ERRORS:
        _point_at_service(request, response)
    ours = isinstance(request, httpx2.Request)
    if ours and isinstance(response.stream, httpx2.ByteStream):
        return response
    body = _stream_class("httpx2" if ours else "httpx")(response.stream, request)
    if ours:
        response.stream = body
        return response
    import httpx  # noqa: PLC0415 - only where the caller has it

    return httpx.Response(response.status_code, headers=response.headers.raw, stream=body, extensions=response.extensions)


def _point_at_service(request: Any, response: httpx2.Response) -> None:
    """A redirect of the instance to itself, which knows only its own address, goes to the service it was called as."""
    instance: Instance | None = response.extensions.get(INSTANCE)
    where = response.headers.get("location", "")
    own = f"{instance.scheme}://{instance.netloc}" if instance else ""
    if own and where.startswith(own) and where[len(own) :][:1] in ("", "/", "?", "#"):
        response.headers["location"] = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}{where[len(own) :]}"


_REDIRECTS, _ERRORS = 300, 400


class MeshTransport(httpx2.BaseTransport):
    """Mount it on an ``httpx2.Client`` or ``httpx.Client``: ``Client(mounts={"http://orders": mesh.transport()})``."""

    def __init__(self, stack: StackOf, sender: Sender) -> None:
        self._stack, self._sender = stack, sender

    def handle_request(self, request: Any) -> Any:
        """Perform ``request`` at an instance of the service that its host names. Raises
        :class:`~meshlib.errors.CallError`, and :class:`~meshlib.errors.ConfigError` for a host that cannot name one."""
        target, stack = self._stack(request.url.host)
        call = call_of(request, target)
        try:
            response = run(stack.proceed, call, self._sender)
        except CallError as error:
            stack.blame(error, call)
            raise foreign(error, request) from error
        if type(response) is Given:
            response = answer_from(response.value, call)
        return answer_to(request, response)

    def close(self) -> None:
        """Does nothing: the connections belong to the mesh, which outlives any client."""


class AsyncMeshTransport(httpx2.AsyncBaseTransport):
    """The same for ``AsyncClient``."""

    def __init__(self, stack: StackOf, sender: AsyncSender) -> None:
        self._stack, self._sender = stack, sender

    async def handle_async_request(self, request: Any) -> Any:
        """See :meth:`MeshTransport.handle_request`."""
        target, stack = self._stack(request.url.host)
        call = call_of(request, target)
        try:
            response = await arun(stack.proceed, call, self._sender)
        except CallError as error:
            stack.blame(error, call)
            raise foreign(error, request) from error
        if type(response) is Given:
            response = answer_from(response.value, call)
        return answer_to(request, response)

    async def aclose(self) -> None:
        """Does nothing: see :meth:`MeshTransport.close`."""


def _buffered(request: httpx2.Request, stream: bool) -> None:
    if stream:
        request.extensions.pop(BUFFER, None)  # a request may be sent again
    else:
        request.extensions[BUFFER] = True


class MeshClient(httpx2.Client):
    """A plain httpx2 client, except that a body it will read anyway is read within the attempt, where a connection lost in
    the middle of it can still be failed over."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._requests = Requests(self)

    def build_request(self, method: str, url: Any, **options: Any) -> httpx2.Request:
        """As ``httpx2.Client.build_request``."""
        url = self._requests.join(url)
        return self._requests.plain(method, url, options) or super().build_request(method, url, **options)

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """As ``httpx2.Client.send``."""
        _buffered(request, stream)
        return super().send(request, stream=stream, **options)


class AsyncMeshClient(httpx2.AsyncClient):
    """See :class:`MeshClient`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._requests = Requests(self)

    def build_request(self, method: str, url: Any, **options: Any) -> httpx2.Request:
        """As ``httpx2.AsyncClient.build_request``."""
        url = self._requests.join(url)
        return self._requests.plain(method, url, options) or super().build_request(method, url, **options)

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """As ``httpx2.AsyncClient.send``."""
        _buffered(request, stream)
        return await super().send(request, stream=stream, **options)
