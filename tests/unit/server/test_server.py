"""The provider's middleware counts what is in flight and sends clients elsewhere while draining."""

import asyncio
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from wsgiref.handlers import SimpleHandler

import pytest

from meshlib import deadline
from meshlib.server import InFlight, asgi, governed_asgi, governed_wsgi, wsgi


def start_noted(said: list[Any]) -> Any:
    return lambda status, headers, *rest: said.append((status, headers, *rest))


def hello(_environ: dict[str, Any], start: Any) -> Iterator[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    yield b"hello"


class TestWsgi:
    def test_in_flight_until_the_server_closes_the_body(self) -> None:
        flying = InFlight()
        body = wsgi(hello, flying)({}, start_noted([]))
        assert list(body) == [b"hello"]
        assert len(flying) == 1
        body.close()  # type: ignore[attr-defined]
        body.close()  # type: ignore[attr-defined]
        assert len(flying) == 0

    def test_an_app_that_fails_at_once(self) -> None:
        flying = InFlight()
        with pytest.raises(ZeroDivisionError):
            wsgi(lambda *_: 1 / 0, flying)({}, start_noted([]))  # type: ignore[arg-type, return-value]
        assert len(flying) == 0

    def test_a_body_whose_close_fails(self) -> None:
        class Body(list[bytes]):
            def close(self) -> None:
                raise OSError

        flying = InFlight()
        body = wsgi(lambda *_: Body(), flying)({}, start_noted([]))
        with pytest.raises(OSError):
            body.close()  # type: ignore[attr-defined]
        assert len(flying) == 0

    def test_exc_info_passes(self) -> None:
        said: list[Any] = []

        def app(_environ: Any, start: Any) -> list[bytes]:
            start("500 Oops", [], (ValueError, ValueError(), None))
            return []

        wsgi(app, InFlight())({}, start_noted(said))
        assert len(said[0]) == 3

    def test_draining_leaves_the_connection_to_the_server(self) -> None:
        """PEP 3333 keeps hop-by-hop headers for it, and wsgiref holds apps to that."""
        flying = InFlight()
        flying.draining = True
        out, err = BytesIO(), BytesIO()
        environ = {"SERVER_SOFTWARE": "WSGIServer/0.2 CPython/3", "SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": "GET"}
        handler = SimpleHandler(BytesIO(), out, err, environ, multithread=False)  # type: ignore[arg-type]
        handler.run(wsgi(hello, flying))  # type: ignore[arg-type]
        assert b"200 OK" in out.getvalue()
        assert b"hello" in out.getvalue()


async def call_asgi(app: Any, scope: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, None, send)
    return sent


class TestAsgi:
    @staticmethod
    async def hello(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"hello"})

    @pytest.mark.parametrize(
        ("version", "draining", "hinted"), [("1.1", True, True), ("1.1", False, False), ("2", True, False)]
    )
    def test_hint(self, version: str, draining: bool, hinted: bool) -> None:
        flying = InFlight()
        flying.draining = draining
        sent = asyncio.run(call_asgi(asgi(self.hello, flying), {"type": "http", "http_version": version}))
        assert ((b"connection", b"close") in sent[0].get("headers", [])) is hinted
        assert len(flying) == 0

    def test_counted_while_it_runs_and_after_it_fails(self) -> None:
        flying, seen = InFlight(), []

        async def failing(*_: Any) -> None:
            seen.append(len(flying))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            asyncio.run(call_asgi(asgi(failing, flying), {"type": "http"}))
        assert seen == [1]
        assert len(flying) == 0

    def test_others_pass_through(self) -> None:
        flying, seen = InFlight(), []

        async def app(*_: Any) -> None:
            seen.append(len(flying))

        asyncio.run(call_asgi(asgi(app, flying), {"type": "websocket"}))
        assert seen == [0]


class TestLifespan:
    """What the server, the app and the mesh hear of each other, in order."""

    @staticmethod
    def live(app: Any) -> list[str]:
        said: list[str] = []
        flying = InFlight()
        flying.on_serving = lambda: said.append("serving")

        async def stopped() -> None:
            said.append("stopped")

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            async def hear() -> Any:
                message = await receive()
                said.append(f"app heard {message['type']}")
                return message

            await app(scope, hear, send)

        async def server() -> None:
            messages = iter(("lifespan.startup", "lifespan.shutdown"))

            async def receive() -> Any:
                return {"type": next(messages)}

            async def send(message: Any) -> None:
                said.append(f"server heard {message['type']}")

            await asgi(noted, flying, stopped)({"type": "lifespan"}, receive, send)

        asyncio.run(server())
        return [line.replace("lifespan.", "") for line in said]

    def test_an_app_that_has_one(self) -> None:
        async def app(_scope: Any, receive: Any, send: Any) -> None:
            for kind in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{kind}"
                await send({"type": f"lifespan.{kind}.complete"})

        assert self.live(app) == [
            "app heard startup", "server heard startup.complete", "serving",
            "stopped", "app heard shutdown", "server heard shutdown.complete",
        ]  # fmt: skip

    @pytest.mark.parametrize("raises", [True, False])
    def test_an_app_that_has_none(self, raises: bool) -> None:
        async def app(scope: Any, *_: Any) -> None:
            assert scope["type"] == "http" or not raises

        assert self.live(app) == ["server heard startup.complete", "serving", "stopped", "server heard shutdown.complete"]

    def test_an_app_that_fails_to_start(self) -> None:
        """It is the server that decides what this means."""

        async def app(_scope: Any, receive: Any, _send: Any) -> None:
            await receive()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.live(app)

    def test_an_app_that_says_that_it_failed(self) -> None:
        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.failed"})

        assert self.live(app) == ["app heard startup", "server heard startup.failed"]


class TestInFlight:
    @pytest.mark.parametrize(
        "serve", [lambda app, flying: wsgi(app, flying)({}, start_noted([])), lambda _, flying: flying.begin()]
    )
    def test_the_first_request_is_announced_before_it_is_counted_and_only_once(self, serve: Any) -> None:
        flying, seen = InFlight(), []
        flying.on_serving = lambda: seen.append(len(flying))
        serve(hello, flying)
        serve(hello, flying)
        assert seen == [0]

    def test_wait_ends_with_the_last(self) -> None:
        flying = InFlight()
        one = flying.begin()
        flying.draining = True
        ender = threading.Thread(target=flying.end, args=(one,))
        ender.start()
        assert flying.wait(60.0)
        ender.join()

    def test_wait_gives_up(self) -> None:
        flying = InFlight()
        flying.begin()
        assert not flying.wait(0.0)


class TestDeadlines:
    """What a request leaves of its caller's time."""

    @staticmethod
    def noting(seen: list[float | None]) -> Any:
        def app(_environ: Any, start: Any) -> Iterator[bytes]:
            start("200 OK", [])
            seen.append(deadline.time_left())
            yield b"a"
            seen.append(deadline.time_left())

        return app

    @pytest.mark.parametrize(("header", "least", "most"), [("150000", 100.0, 150.0), ("9999999999", 3500.0, 3600.0)])
    def test_the_app_and_its_body_know_it(self, header: str, least: float, most: float) -> None:
        seen: list[float | None] = []
        body = governed_wsgi(self.noting(seen))({"HTTP_X_MESH_DEADLINE": header}, start_noted([]))
        list(body)
        body.close()  # type: ignore[attr-defined]
        assert all(left is not None and least < left <= most for left in seen), seen
        assert deadline.time_left() is None

    @pytest.mark.parametrize("environ", [{}, {"HTTP_X_MESH_DEADLINE": "soon"}])
    def test_without_one(self, environ: dict[str, Any]) -> None:
        seen: list[float | None] = []
        list(governed_wsgi(self.noting(seen))(environ, start_noted([])))
        assert seen == [None, None]

    def test_a_request_before_whose_body_was_not_closed(self) -> None:
        seen: list[float | None] = []
        app = governed_wsgi(self.noting(seen))
        kept = app({"HTTP_X_MESH_DEADLINE": "90000"}, start_noted([]))
        list(app({}, start_noted([])))
        assert seen == [None, None]
        kept.close()  # type: ignore[attr-defined]

    def test_an_app_that_fails(self) -> None:
        with pytest.raises(ZeroDivisionError):
            governed_wsgi(lambda *_: 1 / 0)({"HTTP_X_MESH_DEADLINE": "90000"}, start_noted([]))  # type: ignore[arg-type, return-value]
        assert deadline.time_left() is None

    def test_what_is_too_late_is_refused(self) -> None:
        said: list[Any] = []
        seen: list[float | None] = []
        body = governed_wsgi(self.noting(seen))({"HTTP_X_MESH_DEADLINE": "0"}, start_noted(said))
        document = json.loads(b"".join(body))
        assert said[0][0] == "504 Gateway Timeout"
        assert dict(said[0][1])["Content-Type"] == "application/problem+json"
        assert (document["status"], document["title"], seen) == (504, "Gateway Timeout", [])

    def test_the_same_for_asgi(self) -> None:
        seen: list[float | None] = []

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            seen.append(deadline.time_left())
            await send({"type": "http.response.start", "status": 200})

        def ask(*headers: tuple[bytes, bytes]) -> list[Any]:
            return asyncio.run(call_asgi(governed_asgi(app), {"type": "http", "headers": headers}))

        ask((b"x-mesh-deadline", b"150000"))
        ask()
        ask((b"x-mesh-deadline", b"900000"), (b"x-mesh-deadline", b"20000"))
        assert seen[1] is None
        assert 100.0 < (seen[0] or 0.0) <= 150.0
        assert 0.0 < (seen[2] or 0.0) <= 20.0, "of several the least"
        start, body = ask((b"x-mesh-deadline", b"0"))
        assert (start["status"], json.loads(body["body"])["status"]) == (504, 504)
        assert (b"content-type", b"application/problem+json") in start["headers"]
        assert len(seen) == 3

    def test_websockets_pass(self) -> None:
        seen: list[str] = []

        async def app(scope: Any, *_: Any) -> None:
            seen.append(scope["type"])

        asyncio.run(call_asgi(governed_asgi(app), {"type": "websocket", "headers": [(b"x-mesh-deadline", b"0")]}))
        assert seen == ["websocket"]
