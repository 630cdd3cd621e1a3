"""Requests are counted once, when their answers are complete, however they end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshlib.metrics import server
from meshlib.metrics.families import Distribution
from meshlib.metrics.server import ROUTE, counted_asgi, counted_wsgi
from meshlib.testing import FakeClock


class World:
    def __init__(self) -> None:
        self.clock, self.recorder, self.started = FakeClock(), server.recorder(), list[Any]()

    def counted(self) -> list[tuple[dict[str, str], int, float]]:
        found = []
        for sample in server.family(self.recorder).samples:
            assert isinstance(sample.value, Distribution)
            found.append((dict(sample.labels), sample.value.count, sample.value.sum))
        return found

    def wsgi(self, app: Any, method: str = "GET") -> Any:
        environ = {"REQUEST_METHOD": method}
        return counted_wsgi(app, self.recorder, self.clock)(environ, lambda *said: self.started.append(said))

    def asgi(self, app: Any, **scope: Any) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        made = {"type": "http", "method": "GET", **scope}
        asyncio.run(counted_asgi(app, self.recorder, self.clock)(made, None, send))
        return sent


def test_wsgi_until_the_body_is_closed() -> None:
    world = World()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ[ROUTE] = "/orders/{id}"
        start_response("201 Created", [("X", "1")])
        world.clock.advance(0.5)
        yield b"a"
        world.clock.advance(0.5)
        yield b"b"

    body = world.wsgi(app, "POST")
    assert b"".join(body) == b"ab"
    assert world.counted() == []
    world.clock.advance(1.0)
    body.close()
    body.close()
    assert world.started == [("201 Created", [("X", "1")])]
    labels = {"http.request.method": "POST", "http.route": "/orders/{id}", "http.response.status_code": "201"}
    assert world.counted() == [(labels, 1, 2.0)]


def test_wsgi_apps_that_fail() -> None:
    world = World()

    def at_once(environ: Any, start_response: Any) -> Any:
        raise ZeroDivisionError

    def midway(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        raise KeyError

    with pytest.raises(ZeroDivisionError):
        world.wsgi(at_once)
    body = world.wsgi(midway)
    with pytest.raises(KeyError):
        list(body)
    body.close()
    assert [labels for labels, _, _ in world.counted()] == [
        {"http.request.method": "GET", "error.type": "ZeroDivisionError"},
        {"http.request.method": "GET", "http.response.status_code": "200", "error.type": "KeyError"},
    ]


def test_a_body_of_the_app_is_closed() -> None:
    world, closed = World(), []
    body = SimpleNamespace(close=lambda: closed.append(1), __iter__=lambda: iter(()))
    world.wsgi(lambda _environ, start: (start("500 Oh", []), body)[1]).close()
    assert closed == [1]
    assert world.counted()[0][0]["error.type"] == "500"


def test_asgi() -> None:
    world = World()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = SimpleNamespace(path="/orders/{id}")  # as Starlette does
        await send({"type": "http.response.start", "status": 200})
        world.clock.advance(0.5)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        world.clock.advance(0.5)
        await send({"type": "http.response.body", "body": b"b"})

    assert len(world.asgi(app)) == 3
    labels = {"http.request.method": "GET", "http.route": "/orders/{id}", "http.response.status_code": "200"}
    assert world.counted() == [(labels, 1, 1.0)]


@pytest.mark.parametrize("problem", [ZeroDivisionError, asyncio.CancelledError])
def test_asgi_apps_that_fail(problem: type[BaseException]) -> None:
    world = World()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise problem

    with pytest.raises(problem):
        world.asgi(app)
    assert world.counted() == [({"http.request.method": "GET", "error.type": problem.__name__}, 1, 0.0)]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_http_passes(kind: str) -> None:
    world, seen = World(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    world.asgi(app, type=kind)
    assert seen == [kind]
    assert world.counted() == []
