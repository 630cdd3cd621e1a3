"""The service "shop" for the fork tests, as a user writes it: no hook and no configuration of any server.

Every answer says who gave it and what it holds open, and comes of a call to the service "stock". ``FORK_WITHOUT`` takes one
defence of the library away, for the negative controls.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import threading
from collections.abc import Iterable
from typing import Any, Protocol

from meshlib import Mesh, get, lifecycle, service_client
from meshlib.discovery import registration as registering
from meshlib.discovery import siblings
from meshlib.discovery.siblings import Alone, Record, Siblings
from meshlib.server import over_asgi


class _Deaf:
    """A lifespan as it would be without us: the app says that it knows none."""

    def __init__(self, *_: Any) -> None:
        pass

    async def of(self, app: Any, scope: Any) -> None:
        await app(scope, None, None)


def switch_off(defence: str) -> None:
    """Take one defence of the library away."""
    match defence:
        case "election":
            registering.siblings_of = lambda _, instance: Alone(Record.of(instance))  # type: ignore[attr-defined]
        case "generation":
            siblings.Record.apply = lambda _, instance: instance  # type: ignore[method-assign]
        case "hand-over":
            leave = Siblings.leave
            Siblings.leave = lambda group: leave(group) or True  # type: ignore[method-assign]
        case "lifespan":
            over_asgi.Lifespan = _Deaf  # type: ignore[attr-defined]
        case "successor":
            registering.successor_expected = lambda _: False  # type: ignore[attr-defined]


@service_client("stock", timeout=30.0)
class Stock(Protocol):
    @get("/stock/{item}")
    def level(self, item: str) -> int: ...
    @get("/stock/{item}")
    async def alevel(self, item: str) -> int: ...


logging.basicConfig(level=logging.WARNING, format="%(asctime)s [%(process)d] %(message)s")
logging.getLogger("meshlib").setLevel(logging.DEBUG)
lifecycle.PROPAGATION = 0.1  # nobody calls "shop" by its name here
switch_off(os.environ.get("FORK_WITHOUT", ""))
mesh = Mesh.from_env()
stock = mesh.client(Stock)  # type: ignore[type-abstract]
registration = mesh.register()
number = itertools.count()


def answer(level: int) -> bytes:
    said = {
        "level": level,
        "pid": os.getpid(),
        "registrar": any(each.registrar for each in mesh._registrations),
        "joined": len(mesh._registrations),
        "tasks": len(os.listdir("/proc/self/task")),
        "threads": sorted(each.name for each in threading.enumerate()),
        "files": len(os.listdir("/proc/self/fd")),
    }
    return json.dumps(said).encode()


@mesh.wsgi
def wsgi(_environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Say it, called in a process, a thread or a greenlet; now and then on an event loop of the app's own."""
    body = answer(asyncio.run(stock.alevel("tea")) if next(number) % 8 == 0 else stock.level("tea"))
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


@mesh.asgi
async def asgi(scope: Any, _receive: Any, send: Any) -> None:
    """Say it, on an event loop. Like many apps, it knows no lifespan."""
    assert scope["type"] == "http"
    body = answer(await stock.alevel("tea"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
