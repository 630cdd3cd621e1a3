"""The provider's family, and how requests are counted into it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

from meshlib.metrics.client import error_of, merged, verb_of
from meshlib.metrics.families import Family, Sample, labelled
from meshlib.metrics.recorder import Recorder

LABELS: Final = ("http.request.method", "http.route", "http.response.status_code", "error.type")

ROUTE: Final = "meshlib.route"
"""Key of the WSGI environ or the ASGI scope in which a framework says which of its routes (``/orders/{id}``) a request took.
Starlette's own way, ``scope["route"]``, is known, too."""


def recorder() -> Recorder:
    """One for requests."""
    return Recorder(len(LABELS))


def family(recorder: Recorder) -> Family:
    """How long requests took, until their answers were complete."""
    samples = tuple(Sample(labelled(LABELS, labels), merged([series])) for labels, series in recorder)
    return Family("http.server.request.duration", "histogram", "Duration of requests, until their answers were complete.", "s",
                  samples)  # fmt: skip


class Request:
    """One request being served: it is counted once, by the first :meth:`end`."""

    __slots__ = ("_begun", "_clock", "_error", "_recorder", "_verb", "status")

    def __init__(self, recorder: Recorder, verb: str, clock: Callable[[], float]) -> None:
        self._recorder, self._verb, self._clock = recorder, verb_of(verb), clock
        self.status, self._error = 0, ""
        self._begun: float | None = clock()

    def failed(self, problem: BaseException) -> None:
        """The app raised."""
        self._error = error_of(problem)

    def end(self, route: str) -> None:
        """Its answer is complete."""
        begun, self._begun = self._begun, None
        if begun is not None:
            error = self._error or (str(self.status) if self.status >= 500 else "")
            self._recorder.series((self._verb, route, str(self.status or ""), error)).add(self._clock() - begun)


def _route(carrier: MutableMapping[str, Any]) -> str:
    said = carrier.get(ROUTE)
    if said is None:
        said = getattr(carrier.get("route"), "path", "")
    return said if isinstance(said, str) else ""


class _Body:
    """A WSGI answer that ends its request when the server closes it."""

    def __init__(self, body: Iterable[bytes], request: Request, environ: dict[str, Any]) -> None:
        self._body, self._request, self._environ = body, request, environ

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except Exception as problem:
            self._request.failed(problem)
            raise

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._request.end(_route(self._environ))


def counted_wsgi(app: Callable[..., Iterable[bytes]], recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> Any:
    """``app`` with its requests counted; PEP 3333."""

    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(recorder, environ.get("REQUEST_METHOD", ""), clock)

        def started(status: str, *rest: Any) -> Any:
            request.status = int(status[:3]) if status[:3].isdecimal() else 0
            return start_response(status, *rest)

        try:
            body = app(environ, started)
        except BaseException as problem:
            request.failed(problem)
            request.end(_route(environ))
            raise
        return _Body(body, request, environ)

    return wrapped


def counted_asgi(app: Callable[..., Awaitable[None]], recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> Any:
    """The same for ASGI 3; what is no HTTP passes."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request = Request(recorder, scope.get("method", ""), clock)

        async def tell(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)

        try:
            await app(scope, receive, tell)
        except BaseException as problem:
            request.failed(problem)
            raise
        finally:
            request.end(_route(scope))

    return wrapped
