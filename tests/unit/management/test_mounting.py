"""The pages beside an app, in WSGI, ASGI, and at a port of their own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from meshlib import Mesh, Settings
from meshlib.management.listener import formatted, parse
from meshlib.management.mounting import path_of
from meshlib.management.pages import Answer, Ask
from tests.servers.base import free_port


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path)))


class Wsgi:
    """A plain app, that notes how many requests are counted while it works."""

    def __init__(self, mesh: Mesh, **options: Any) -> None:
        self.seen: list[int] = []
        self._mesh = mesh
        self.client = httpx2.Client(transport=httpx2.WSGITransport(app=mesh.wsgi(self, **options)), base_url="http://app")

    def __call__(self, environ: Any, start: Any) -> list[bytes]:
        self.seen.append(len(self._mesh.in_flight))
        start("200 OK", [])
        return [environ["PATH_INFO"].encode()]


class Asgi:
    """The same in ASGI."""

    def __init__(self, mesh: Mesh, **options: Any) -> None:
        self.seen: list[int] = []
        self._mesh, self._app = mesh, mesh.asgi(self, **options)

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.seen.append(len(self._mesh.in_flight))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    def get(self, path: str, **options: Any) -> httpx2.Response:
        async def got() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self._app)  # type: ignore[arg-type]
            async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
                return await client.get(path, **options)

        return asyncio.run(got())


class TestWsgi:
    def test_pages_are_not_requests_of_the_app(self, mesh: Mesh) -> None:
        app = Wsgi(mesh)
        assert app.client.get("/healthz").json() == {"status": "UP"}
        assert app.client.get("/readyz?full").status_code == 200
        assert app.seen == []
        assert app.client.get("/orders").text == "/orders"
        assert app.seen == [1]

    def test_head(self, mesh: Mesh) -> None:
        answer = Wsgi(mesh).client.head("/healthz")
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "15")

    def test_an_app_that_wants_none(self, mesh: Mesh) -> None:
        assert Wsgi(mesh, management=False).client.get("/healthz").text == "/healthz"

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_pages_that_are_off_or_elsewhere(self, elsewhere: bool) -> None:
        settings: Any = {"management_port": free_port()} if elsewhere else {"management": "off"}
        with Mesh(Settings(registry="memory://", **settings)) as mesh:
            assert Wsgi(mesh).client.get("/healthz").text == "/healthz"

    @pytest.mark.parametrize(("asked", "status"), [("on", 200), ("off", 404)])
    def test_metrics_when_asked_for(self, asked: str, status: int, tmp_path: Path) -> None:
        def app(_: Any, start: Any) -> list[bytes]:
            start("404 Not Found", [])
            return []

        with Mesh(Settings(registry=f"memory://{tmp_path}", management_metrics=asked)) as mesh:
            client = httpx2.Client(transport=httpx2.WSGITransport(app=mesh.wsgi(app)), base_url="http://app")
            answer = client.get("/metrics")
            assert answer.status_code == status
            assert ("meshlib_registrations" in answer.text) is (asked == "on")

    def test_checks(self, mesh: Mesh) -> None:
        @mesh.management.check("database")
        def database() -> bool:
            return False

        answer = Wsgi(mesh).client.get("/readyz")
        mesh.close()
        assert (answer.status_code, answer.json()["components"]["database"]["status"]) == (503, "DOWN")

    def test_draining(self, mesh: Mesh) -> None:
        mesh.in_flight.draining = True
        assert Wsgi(mesh).client.get("/readyz").status_code == 503


class TestAsgi:
    def test_pages_are_not_requests_of_the_app(self, mesh: Mesh) -> None:
        app = Asgi(mesh)
        assert app.get("/healthz").json() == {"status": "UP"}
        assert app.seen == []
        assert app.get("/orders").text == "/orders"
        assert app.seen == [1]

    def test_paths_that_are_the_apps_own(self, mesh: Mesh) -> None:
        app = Asgi(mesh, own=lambda: {"/healthz"})
        assert app.get("/healthz").text == "/healthz"
        assert app.get("/readyz").json()["status"] == "UP"

    def test_an_app_that_wants_none(self, mesh: Mesh) -> None:
        assert Asgi(mesh, management=False).get("/healthz").text == "/healthz"

    def test_async_checks_run_where_the_app_runs(self, mesh: Mesh) -> None:
        loops: list[object] = []

        @mesh.management.check("database", timeout=60.0)
        async def database() -> None:
            loops.append(asyncio.get_running_loop())

        async def app(*_: Any) -> None:
            raise AssertionError("not the app's")

        async def served() -> None:
            transport = httpx2.ASGITransport(app=mesh.asgi(app))  # type: ignore[arg-type]
            async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
                assert (await client.get("/readyz")).status_code == 200
            assert loops == [asyncio.get_running_loop()]

        asyncio.run(served())
        mesh.close()

    def test_head_and_a_token(self, tmp_path: Path) -> None:
        app = Asgi(Mesh(Settings(registry="memory://", state_dir=str(tmp_path), management_token="s3cret")))
        assert app.get("/actuator/info").status_code == 401
        assert app.get("/actuator/info", headers={"Authorization": "Bearer s3cret"}).status_code == 200

    @pytest.mark.parametrize(
        ("path", "root", "below"),
        [
            ("/healthz", "", "/healthz"),
            ("/api/healthz", "/api", "/healthz"),
            ("/api/healthz", "/api/", "/healthz"),
            ("/apis/healthz", "/api", "/apis/healthz"),
            ("/healthz", "/api", "/healthz"),
        ],
    )
    def test_below_what_it_is_mounted_at(self, path: str, root: str, below: str) -> None:
        assert path_of({"path": path, "root_path": root}) == below


class TestPort:
    def test_a_request(self) -> None:
        head = b"GET /readyz?x=1 HTTP/1.1\r\nHost: a:b\r\nAUTHORIZATION:  Bearer x \r\n\r\n"
        assert parse(head, "10.0.0.1") == Ask("GET", "/readyz", "Bearer x", "10.0.0.1")

    @pytest.mark.parametrize("head", [b"\r\n\r\n", b"GET\r\n\r\n", b"a b c d\r\n\r\n"])
    def test_what_is_none(self, head: bytes) -> None:
        with pytest.raises(ValueError):
            parse(head, "")

    def test_an_answer(self) -> None:
        answer = Answer(503, json.dumps({"status": "DOWN"}).encode())
        head, _, body = formatted(answer).partition(b"\r\n\r\n")
        assert head.split(b"\r\n")[0] == b"HTTP/1.1 503 Service Unavailable"
        assert b"Connection: close" in head
        assert body == answer.body
        assert formatted(answer, head=True).endswith(b"\r\n\r\n")
