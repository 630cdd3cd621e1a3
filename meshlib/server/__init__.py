"""The provider's side, as one WSGI and one ASGI middleware: counts requests in flight, so that a stop can wait for them, and
puts them under the provider's layers, in THE ORDER (``order.py``)."""

from meshlib.server.govern_asgi import governed_asgi
from meshlib.server.govern_wsgi import governed_wsgi
from meshlib.server.handler import Handler, Incoming
from meshlib.server.in_flight import InFlight
from meshlib.server.order import ORDER, ProviderStack
from meshlib.server.over_asgi import asgi
from meshlib.server.over_wsgi import wsgi
from meshlib.server.problems import problem
from meshlib.server.types import AsgiApp, WsgiApp

__all__ = [
    "ORDER", "AsgiApp", "Handler", "InFlight", "Incoming", "ProviderStack", "WsgiApp", "asgi", "governed_asgi", "governed_wsgi",
    "problem", "wsgi",
]  # fmt: skip
