"""A WSGI app under the provider's layers: each request is a call, and sending it is running the app (PEP 3333).

The call is answered when the app has made the first part of its body, for only then it is certain to have said the status;
what layers hold is held until the server closes the body. Nothing else is read ahead, and what the app writes goes out at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from itertools import chain
from typing import Any, Final
from urllib.parse import quote

from meshlib import deadline, priorities
from meshlib.errors import ConfigError, DeadlineExceeded, Refused
from meshlib.flow import INCOMING, Call, run
from meshlib.model import ServiceUrl
from meshlib.server.body import Body, closed
from meshlib.server.order import NONE, ProviderStack
from meshlib.server.problems import Said, given, problem
from meshlib.server.types import Environ, StartResponse, WsgiApp

_DEADLINE: Final = "HTTP_" + deadline.HEADER.upper().replace("-", "_")
_PRIORITY: Final = "HTTP_" + priorities.HEADER.upper().replace("-", "_")
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_OF_THE_BODY: Final = (("CONTENT_TYPE", b"Content-Type"), ("CONTENT_LENGTH", b"Content-Length"))


def governed_wsgi(app: WsgiApp, stack: ProviderStack = NONE) -> WsgiApp:
    """``app``, in which calls (and the making of the body) are bound by the deadline that a request brings in its header
    ``X-Mesh-Deadline`` and have its priority, under the layers of ``stack``. Requests that are refused are answered with a
    problem document; errors of the app go on."""

    def governed(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        left = deadline.seconds_of(environ.get(_DEADLINE, ""))
        if left == 0 and stack.proceed is None:
            return _say(environ, start_response, problem(DeadlineExceeded("no time is left")))
        end = None if left is None else deadline.now() + left
        said = environ.get(_PRIORITY)
        # Set even when they are none: a thread serves one request after the other, and a body may not have been closed.
        level = priorities.enter(priorities.level_of(said) if said else "")
        before = deadline.enter(end)

        def leave() -> None:
            deadline.enter(before)
            if said or level:
                priorities.enter(level)

        try:
            if stack.proceed is None:
                body = app(environ, start_response)
            else:
                body = _Request(app, environ, start_response, stack, end).serve()
        except BaseException:
            leave()
            raise
        return Body(body, leave)

    return governed


def call_of(environ: Environ, service: ServiceUrl, end: float | None) -> Call:
    """The request as layers see it, its path as the app sees it; ``end`` is its deadline (monotonic seconds)."""
    path = quote(f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}", encoding="latin-1") or "/"
    query = environ.get("QUERY_STRING", "")
    target = f"{path}?{query}" if query else path
    headers = [(name[5:].replace("_", "-").encode("latin-1"), value.encode("latin-1"))
               for name, value in environ.items() if name.startswith("HTTP_")]  # fmt: skip
    headers += [(wire, environ[name].encode("latin-1")) for name, wire in _OF_THE_BODY if environ.get(name)]
    method = environ.get("REQUEST_METHOD", "GET")
    return Call(service, method, target.encode("latin-1"), headers, replayable=False, extensions={INCOMING: True}, deadline=end)


class _Request:
    """One request: performs its call."""

    __slots__ = ("_app", "_begun", "_call", "_environ", "_stack", "_start_response", "headers", "status_code")

    def __init__(
        self, app: WsgiApp, environ: Environ, start_response: StartResponse, stack: ProviderStack, end: float | None
    ) -> None:
        self._app, self._environ, self._start_response, self._stack = app, environ, start_response, stack
        self._call = call_of(environ, stack.service, end)
        self._begun = False
        self.status_code = 500
        self.headers: dict[str, str] = {}

    def serve(self) -> Iterable[bytes]:
        proceed = self._stack.proceed
        assert proceed is not None
        try:
            answer: Any = run(proceed, self._call, self)
        except (Refused, DeadlineExceeded) as refusal:
            if self._begun:
                raise  # the app's own, of something that it called
            return _say(self._environ, self._start_response, problem(refusal))
        return answer if self._begun else _say(self._environ, self._start_response, given(answer))

    def send(self, call: Call) -> Any:
        if self._begun:
            raise ConfigError("policies", "asked twice for the answer to one request", example="policies=[bulkhead(20)]")
        end = call.deadline
        if end is not None and end <= deadline.now():
            raise DeadlineExceeded("no time is left", service=call.target)
        self._begun = True
        deadline.enter(end)
        body = self._app(self._environ, self._start)
        if isinstance(body, (list, tuple)):
            return Answer(self.status_code, self.headers, body, body)
        try:
            begun = _begun(iter(body))
        except BaseException:
            closed(body)
            raise
        return Answer(self.status_code, self.headers, begun, body)

    def _start(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        self.status_code = int(status[:3]) if status[:3].isdecimal() else 500
        if self.status_code in (429, 503):
            self.headers = {name.lower(): value for name, value in headers}
        return self._start_response(status, [*headers, *self._stack.fields(self._call)], *exc_info)

    def hold(self, response: Any, call: Call) -> None:
        if isinstance(response, Answer):
            response.hold(call)
        else:
            call.close()

    def drop(self, response: Any) -> None:
        response.close()


class Answer:
    """The body as the server gets it, and what layers know of an answer. Closed, it closes the app's body, then the calls."""

    def __init__(self, status_code: int, headers: dict[str, str], parts: Iterable[bytes], body: Iterable[bytes]) -> None:
        self.status_code, self.headers = status_code, headers
        self._parts, self._body, self._held = parts, body, list[Call]()

    def hold(self, call: Call) -> None:
        """Close ``call`` with the body."""
        self._held.append(call)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        """Once is enough."""
        held, self._held = self._held, []
        try:
            closed(self._body)
        finally:
            for call in held:
                call.close()


def _begun(parts: Iterator[bytes]) -> Iterator[bytes]:
    """``parts``, the first of them made already."""
    for first in parts:
        return chain((first,), parts)
    return iter(())


def _say(environ: Environ, start_response: StartResponse, said: Said) -> Iterable[bytes]:
    status, headers, body = said
    start_response(f"{status} {_PHRASES.get(status, 'Unknown')}", headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]
