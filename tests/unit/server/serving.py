"""A server's side of ASGI and WSGI, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from meshlib.model import ServiceUrl
from meshlib.policies.base import Policy, Site
from meshlib.server import ProviderStack
from meshlib.testing import FakeClock

ORDERS = ServiceUrl("orders")


def stack(*policies: Policy, clock: FakeClock | None = None) -> ProviderStack:
    site = Site(service="orders") if clock is None else Site(service="orders", clock=clock)
    return ProviderStack(site, policies, service=ORDERS)


def layer_of(provider: ProviderStack, kind: str) -> Any:
    """The layer of the only policy of ``kind``."""
    (found,) = [layer for part, layer in provider._bound.items() if part.policy.kind == kind]
    return getattr(found, "layer", found)


def scope(path: str = "/orders/7", method: str = "GET", headers: Iterable[tuple[bytes, bytes]] = (), **more: Any) -> Any:
    path, _, query = path.partition("?")
    given = {"raw_path": path.encode(), "query_string": query.encode(), **more}
    return {"type": "http", "method": method, "path": path, "headers": list(headers), "http_version": "1.1", **given}


async def ask(app: Any, asked: Any, sent: list[Any] | None = None, receive: Any = None) -> list[Any]:
    """What ``app`` sends for the request."""
    sent = [] if sent is None else sent

    async def send(message: Any) -> None:
        sent.append(message)

    await app(asked, receive or nothing, send)
    return sent


async def nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


def asked(app: Any, asked: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer."""
    start, *parts = asyncio.run(ask(app, asked))
    headers = {name.decode(): value.decode() for name, value in start.get("headers", ())}
    return start["status"], headers, b"".join(part.get("body", b"") for part in parts)


def environ(path: str = "/orders/7", method: str = "GET", **more: str) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, **more}


class Started:
    """A server's ``start_response``; ``written`` is what the app wrote."""

    def __init__(self) -> None:
        self.status, self.headers, self.rest = "", dict[str, str](), ()
        self.written: list[bytes] = []

    def __call__(self, status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        self.status, self.headers, self.rest = status, dict(headers), rest
        return self.written.append
