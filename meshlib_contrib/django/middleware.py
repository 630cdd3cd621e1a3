"""The middleware: what :meth:`meshlib.Mesh.wsgi` does to an app, in Django's terms, blocking or awaited like those below."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.apps import apps
from django.core import mail
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from meshlib.errors import ConfigError, DeadlineExceeded, Refused
from meshlib.management import Answer, Ask
from meshlib.server import Incoming
from meshlib_contrib import stopping
from meshlib_contrib.django import own


class MeshMiddleware:
    """Counts requests, puts them under the policies of ``MESH`` and bounds what they call by their deadlines, answers errors
    of views that are refusals with problem details, and serves the management endpoints. Where it is made there is a handler of
    requests: the process is about to serve, so it is registered once it listens, unless it only tests. Raises
    :class:`meshlib.ConfigError`."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        if not apps.is_installed("meshlib_contrib.django"):
            raise ConfigError("INSTALLED_APPS", "lacks the app of MeshMiddleware", source="settings",
                              example='INSTALLED_APPS = ["meshlib_contrib.django", ...]')  # fmt: skip
        from meshlib_contrib.django import checks  # noqa: PLC0415 - it names this class

        checks.at_start()
        self._get_response, self._awaits = get_response, iscoroutinefunction(get_response)
        if self._awaits:
            markcoroutinefunction(self)
        own.handler()
        self._leaves_first = testing = hasattr(mail, "outbox")  # which it has while tests run
        if not testing:
            announce()

    def __call__(self, request: HttpRequest) -> Any:
        if self._awaits:
            return self._aserve(request)
        if request.path_info in (management := own.get_mesh().management).paths:
            return page_of(management.answer(ask_of(request)), request)
        return own.handler().serve(incoming(request), lambda: self._get_response(request))

    async def _aserve(self, request: HttpRequest) -> HttpResponseBase:
        if not self._leaves_first:  # again: uvicorn with one worker begins to handle signals when the app is loaded
            self._leaves_first = True
            stopping.leave_first(own.get_mesh())
        if request.path_info in (management := own.get_mesh().management).paths:
            return page_of(await management.aanswer(ask_of(request)), request)
        handler, answer = own.handler(), partial[Awaitable[Any]](self._get_response, request)
        response: HttpResponseBase = await handler.aserve(incoming(request), answer)
        if handler.in_flight.draining and getattr(request, "scope", {}).get("http_version", "2").startswith("1"):
            response.headers["Connection"] = "close"  # keep-alive clients are sent elsewhere; WSGI has servers say so
        return response

    def process_exception(self, _request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """A view has failed of something that it called, or that stands on it."""
        return own.problem_of(exception) if isinstance(exception, (Refused, DeadlineExceeded)) else None


def announce() -> None:
    """Have this process registered as soon as it listens, and leave while it still serves."""
    mesh = own.get_mesh()
    mesh.announce()
    stopping.leave_first(mesh)


def page_of(answer: Answer, request: HttpRequest) -> HttpResponse:
    """A management page."""
    body = b"" if request.method == "HEAD" else answer.body
    return HttpResponse(body, status=answer.status, headers=dict(answer.headers))


def ask_of(request: HttpRequest) -> Ask:
    """What is asked for, if it is one."""
    said = request.META
    return Ask(request.method or "", request.path_info, said.get("HTTP_AUTHORIZATION", ""), said.get("REMOTE_ADDR") or "")


def incoming(request: HttpRequest) -> Incoming:
    """The request as the mesh takes it."""
    return Incoming(
        method=request.method or "", target=target_of(request), headers=request.headers.items,
        deadline=request.META.get("HTTP_X_MESH_DEADLINE", ""), priority=request.META.get("HTTP_X_MESH_PRIORITY", ""),
        route=partial(route_of, request), when_over=partial(when_over, request),
    )  # fmt: skip


def target_of(request: HttpRequest) -> str:
    """Path and query."""
    query = request.META.get("QUERY_STRING", "")
    return quote(request.path) + (f"?{query}" if query else "")


def route_of(request: HttpRequest) -> str:
    """The route that it took, ``/orders/<int:id>``, if it took any."""
    match = request.resolver_match
    return "" if match is None else f"/{match.route}"


def when_over(request: HttpRequest, over: Callable[[], object]) -> None:
    """Have ``over()`` called once: Django closes the request with whatever response it sent in the end; and where it lets
    both fall (a client that hung up, under ASGI), nobody has the request any more."""
    ending: Any = weakref.finalize(request, over)
    ending.atexit = False
    close = request.close

    def closed() -> None:
        del request.close  # and so the circle through this function
        try:
            close()
        finally:
            ending()

    request.close = closed  # type: ignore[method-assign]
