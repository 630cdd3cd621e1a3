"""The Litestar plugin, by Litestar's own test client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest
from litestar import Litestar, MediaType, Request, Response, WebSocket, websocket
from litestar import get as route
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.testing import TestClient

from meshlib import ConfigError, Mesh, Settings, bulkhead, get, rate_limit, service_client, time_left
from meshlib.errors import DeadlineExceeded, Refused
from meshlib_contrib.litestar import MeshPlugin, client


@service_client("stock")
class Stock(Protocol):
    @get("/stock/{item}")
    def level(self, item: str) -> int: ...

    @get("/stock/{item}")
    async def alevel(self, item: str) -> int: ...


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    settings = Settings(registry="static://stock=10.0.0.1:80", state_dir=str(tmp_path))
    answering = httpx2.MockTransport(lambda _: httpx2.Response(200, json=7))
    with Mesh(settings, transport=lambda _: answering, async_transport=lambda _: answering) as mesh:
        yield mesh


STOCK: Any = {"stock": client(Stock)}


@route("/sync/{item:str}", sync_to_thread=True, dependencies=STOCK)
def sync(item: FromPath[str], stock: NamedDependency[Stock]) -> dict[str, Any]:
    return {"level": stock.level(item), "left": time_left()}


@route("/async/{item:str}", dependencies=STOCK)
async def asynchronous(item: FromPath[str], stock: NamedDependency[Stock], mesh: NamedDependency[Mesh]) -> dict[str, Any]:
    return {"level": await stock.alevel(item), "left": time_left(), "in flight": len(mesh.in_flight)}


@websocket("/ws", dependencies=STOCK)
async def socket(socket: WebSocket[Any, Any, Any], stock: NamedDependency[Stock]) -> None:
    await socket.accept()
    await socket.send_json(await stock.alevel("tea"))
    await socket.close()


@route("/fail/{how:str}")
async def fail(how: FromPath[str]) -> str:
    raise {"late": DeadlineExceeded("late"), "refused": Refused("nobody at 10.1.1.1")}[how]


def served(mesh: Mesh, *handlers: Any, **options: Any) -> TestClient[Litestar]:
    """An app of ``handlers``, with its lifespan."""
    plugin = MeshPlugin(mesh, **options.pop("mesh_options", {}))
    return TestClient(Litestar([*handlers], plugins=[plugin], **options))


class TestClients:
    def test_in_handlers_of_every_kind(self, mesh: Mesh) -> None:
        with served(mesh, sync, asynchronous, socket) as ask:
            deadline = {"X-Mesh-Deadline": "60000"}
            assert ask.get("/sync/tea").json() == {"level": 7, "left": None}
            answer = ask.get("/async/tea", headers=deadline).json()
            assert (answer["level"], answer["in flight"]) == (7, 1)
            assert 0 < answer["left"] <= 60
            with ask.websocket_connect("/ws") as connected:
                assert connected.receive_json() == 7

    def test_they_are_in_no_schema(self, mesh: Mesh) -> None:
        with served(mesh, sync, asynchronous) as ask:
            schema = ask.app.openapi_schema.to_schema()
            assert set(schema["paths"]) == {"/sync/{item}", "/async/{item}"}
            for path in schema["paths"].values():
                assert [each["name"] for each in path["get"]["parameters"]] == ["item"]
                assert "requestBody" not in path["get"]

    def test_they_are_made_once(self, mesh: Mesh) -> None:
        plugin = MeshPlugin(mesh)
        assert plugin.client(Stock) is plugin.client(Stock)  # type: ignore[type-abstract]

    def test_an_app_without_a_mesh(self) -> None:
        with TestClient(Litestar([sync], debug=True)) as ask:
            assert "this app has no mesh" in ask.get("/sync/tea").text


class TestRequests:
    def test_no_time_is_left(self, mesh: Mesh) -> None:
        with served(mesh, asynchronous) as ask:
            assert ask.get("/async/tea", headers={"X-Mesh-Deadline": "0"}).status_code == 504

    @pytest.mark.parametrize(("how", "status"), [("late", 504), ("refused", 503)])
    def test_a_handler_that_fails(self, mesh: Mesh, how: str, status: int) -> None:
        with served(mesh, fail) as ask:
            answer = ask.get(f"/fail/{how}")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert "10.1.1.1" not in answer.text

    def test_a_handler_of_the_apps_own(self, mesh: Mesh) -> None:
        def mine(_: Request[Any, Any, Any], error: Exception) -> Response[str]:
            return Response("mine", status_code=418)

        with served(mesh, fail, exception_handlers={DeadlineExceeded: mine}) as ask:
            assert (ask.get("/fail/late").status_code, ask.get("/fail/refused").status_code) == (418, 503)

    @pytest.mark.parametrize("threads", [False, True])
    def test_policies_below_the_route(self, mesh: Mesh, threads: bool) -> None:
        @route("/{number:int}", sync_to_thread=True)
        @rate_limit("1/h")
        def limited(number: FromPath[int]) -> int:
            return number

        @route("/{number:int}")
        @rate_limit("1/h")
        async def alimited(number: FromPath[int]) -> int:
            return number

        with served(mesh, limited if threads else alimited) as ask:
            assert ask.get("/7").json() == 7
            answer = ask.get("/8")
        assert (answer.status_code, answer.json()["status"]) == (429, 429)
        assert 3500 < int(answer.headers["retry-after"]) <= 3600

    def test_policies_of_the_plugin(self, mesh: Mesh) -> None:
        with served(mesh, asynchronous, mesh_options={"policies": [rate_limit("1/h")]}) as ask:
            assert [ask.get("/async/tea").status_code for _ in range(2)] == [200, 429]
            assert ask.get("/healthz").status_code == 200

    def test_requests_are_counted_by_route(self, mesh: Mesh) -> None:
        with served(mesh, asynchronous) as ask:
            ask.get("/async/tea")
            ask.get("/nowhere")
        text = mesh.metrics().prometheus()
        assert 'http_route="/async/{item}",http_response_status_code="200"' in text
        assert 'http_request_method="GET",http_response_status_code="404"' in text


class TestManagement:
    def test_pages_beside_the_app(self, mesh: Mesh) -> None:
        """No guard bars them, and no schema has them."""

        def guard(*_: Any) -> None:
            raise AssertionError

        with served(mesh, asynchronous, guards=[guard]) as ask:
            assert ask.get("/readyz").json()["status"] == "UP"
            assert ask.get("/actuator/info").json()["mesh"]["registry"] == "static"
            assert "/readyz" not in ask.app.openapi_schema.to_schema()["paths"]
            mesh.in_flight.draining = True
            assert ask.get("/readyz").status_code == 503
            mesh.in_flight.draining = False

    def test_a_route_of_the_apps_own(self, mesh: Mesh) -> None:
        @route("/healthz", media_type=MediaType.TEXT)
        async def mine() -> str:
            return "mine"

        with served(mesh, mine) as ask:
            assert ask.get("/healthz").text == "mine"


class TestLifespan:
    def test_the_apps_own_runs_inside(self, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        monkeypatch.setattr(Mesh, "announce", lambda _: told.append("announced"))
        monkeypatch.setattr(Mesh, "leave", lambda _, **how: told.append(f"left {how}"))

        @asynccontextmanager
        async def own(_: Litestar) -> AsyncIterator[None]:
            told.append("up")
            yield
            told.append("down")

        with served(mesh, lifespan=[own]) as ask:
            before = ask.app.asgi_handler
        assert told[:4] == ["announced", "up", "down", "left {'serving': False}"]
        assert ask.app.asgi_handler is not before

    @pytest.mark.parametrize("given", [False, True])
    def test_one_of_its_own_is_closed(self, given: bool, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
        closed: list[Mesh] = []

        async def aclose(mesh: Mesh) -> None:
            closed.append(mesh)

        monkeypatch.setattr(Mesh, "aclose", aclose)
        plugin = MeshPlugin(mesh if given else None)
        with TestClient(Litestar(plugins=[plugin])) as ask:
            assert ask.app.state.mesh is plugin.mesh
        assert closed == ([] if given else [plugin.mesh])

    def test_one_per_app(self, mesh: Mesh) -> None:
        with pytest.raises(ConfigError, match="has a mesh already"):
            Litestar(plugins=[MeshPlugin(mesh), MeshPlugin(mesh)])


def test_a_full_bulkhead(mesh: Mesh) -> None:
    @route("/{depth:int}", sync_to_thread=True)
    @bulkhead(1)
    def view(depth: FromPath[int]) -> int:
        return int(ask.get(f"/{depth - 1}").status_code)

    with served(mesh, view) as ask:
        assert ask.get("/1").json() == 503
