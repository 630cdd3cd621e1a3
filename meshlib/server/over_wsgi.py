"""The WSGI side: requests in flight."""

from __future__ import annotations

from collections.abc import Iterable

from meshlib.server.body import Body
from meshlib.server.in_flight import InFlight
from meshlib.server.types import Environ, StartResponse, WsgiApp


def wsgi(app: WsgiApp, in_flight: InFlight) -> WsgiApp:
    """``app`` with its requests counted; PEP 3333, which keeps ``Connection: close`` for the server to send: wsgiref and
    waitress answer 500 to an app that does."""

    def wrapped(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = in_flight.begin()
        try:
            body = app(environ, start_response)
        except BaseException:
            in_flight.end(request)
            raise
        return Body(body, lambda: in_flight.end(request))

    return wrapped
