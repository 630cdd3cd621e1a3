"""The FastAPI and Starlette integrations, by Starlette's own test client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from meshlib import ConfigError, Mesh, Settings, bulkhead, get, keys, rate_limit, retry, service_client, timeout
from meshlib.errors import DeadlineExceeded, Refused
from meshlib_contrib import starlette
from meshlib_contrib.fastapi import Client, MeshFastAPI, client_of
from meshlib_contrib.starlette import MeshStarlette


@service_client("stock")
class Stock(Protocol):
    @get("/stock/{item}")
    def level(self, item: str) -> int: ...

    @get("/stock/{item}")
    async def alevel(self, item: str) -> int: ...


class Fake:
    def level(self, item: str) -> int:
        return len(item)

    async def alevel(self, item: str) -> int:
        return len(item)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    settings = Settings(registry="static://stock=10.0.0.1:80", state_dir=str(tmp_path))
    answering = httpx2.MockTransport(lambda _: httpx2.Response(200, json=7))
    with Mesh(settings, transport=lambda _: answering, async_transport=lambda _: answering) as mesh:
        yield mesh


@pytest.fixture
def app(mesh: Mesh) -> FastAPI:
    app = FastAPI()
    MeshFastAPI(app, mesh)
    return app


class TestDependency:
    @pytest.fixture
    def app(self, app: FastAPI) -> FastAPI:
        @app.get("/sync/{item}")
        def level(item: str, stock: Annotated[Stock, Client(Stock)]) -> int:
            return stock.level(item)

        @app.get("/async/{item}")
        async def alevel(item: str, stock: Annotated[Stock, Client(Stock)]) -> int:
            return await stock.alevel(item)

        @app.websocket("/ws")
        async def ws(socket: WebSocket, stock: Annotated[Stock, Client(Stock)]) -> None:
            await socket.accept()
            await socket.send_json(await stock.alevel("tea"))
            await socket.close()

        return app

    def test_in_routes_of_every_kind(self, app: FastAPI) -> None:
        client = TestClient(app)
        assert client.get("/sync/tea").json() == client.get("/async/tea").json() == 7
        with client.websocket_connect("/ws") as socket:
            assert socket.receive_json() == 7

    def test_it_is_not_in_the_schema(self, app: FastAPI) -> None:
        schema = app.openapi()
        assert set(schema["paths"]) == {"/sync/{item}", "/async/{item}"}
        for path in schema["paths"].values():
            assert [parameter["name"] for parameter in path["get"]["parameters"]] == ["item"]
            assert "requestBody" not in path["get"]

    def test_it_can_be_overridden(self, app: FastAPI) -> None:
        app.dependency_overrides[client_of(Stock)] = Fake
        assert TestClient(app).get("/sync/coffee").json() == 6

    def test_an_app_without_a_mesh(self) -> None:
        app = FastAPI()
        app.get("/")(client_route)
        with pytest.raises(ConfigError, match="this app has no mesh"):
            TestClient(app).get("/")

    def test_in_an_app_that_is_mounted(self, app: FastAPI) -> None:
        inner = FastAPI()
        inner.get("/")(client_route)
        app.mount("/inner", inner)
        assert TestClient(app).get("/inner/").json() == 7

    def test_clients_are_made_once(self, mesh: Mesh) -> None:
        integration = MeshFastAPI(FastAPI(), mesh)
        assert integration.client(Stock) is integration.client(Stock)  # type: ignore[type-abstract]


async def client_route(stock: Annotated[Stock, Client(Stock)]) -> int:
    return await stock.alevel("tea")


class TestPolicies:
    """Below the route's decorator, without a ``request`` parameter; the annotations of this module are strings."""

    def test_a_route_keeps_its_parameters(self, app: FastAPI) -> None:
        @app.get("/{number}")
        @rate_limit("100/s")
        @bulkhead(3)
        async def route(number: int, verbose: bool = False) -> dict[str, Any]:
            return {"number": number, "verbose": verbose}

        client = TestClient(app)
        assert client.get("/7?verbose=1").json() == {"number": 7, "verbose": True}
        assert client.get("/x").status_code == 422
        names = [parameter["name"] for parameter in app.openapi()["paths"]["/{number}"]["get"]["parameters"]]
        assert names == ["number", "verbose"]

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_what_is_refused_is_a_problem(self, app: FastAPI, kind: str) -> None:
        def route(tenant: str) -> str:
            return tenant

        async def aroute(tenant: str) -> str:
            return tenant

        chosen: Any = route if kind == "sync" else aroute
        app.get("/{tenant}")(rate_limit("1/h", key=keys.parameter("tenant"))(chosen))
        client = TestClient(app)
        assert client.get("/a").json() == "a"
        answer = client.get("/a")
        assert (answer.status_code, answer.headers["content-type"]) == (429, "application/problem+json")
        assert answer.json()["title"] == "Too Many Requests"
        assert 3500 < int(answer.headers["retry-after"]) <= 3600
        assert client.get("/b").status_code == 200, "another key"

    def test_others(self, app: FastAPI, mesh: Mesh) -> None:
        outcomes = iter([OSError(), None])

        @app.get("/")
        @timeout(5.0)
        @retry(attempts=2, base=0.001)
        async def route(stock: Annotated[Stock, Client(Stock)]) -> int:
            if (outcome := next(outcomes)) is not None:
                raise outcome
            return await stock.alevel("tea")

        assert TestClient(app).get("/").json() == 7

    @pytest.mark.parametrize(("error", "status"), [(DeadlineExceeded("late"), 504), (Refused("none at 10.1.1.1"), 503)])
    def test_other_errors(self, app: FastAPI, error: Exception, status: int) -> None:
        @app.get("/")
        def route() -> None:
            raise error

        answer = TestClient(app).get("/")
        assert answer.status_code == status
        assert "10.1.1.1" not in answer.text

    def test_an_exception_handler_of_the_apps_own(self, mesh: Mesh) -> None:
        async def late(*_: object) -> PlainTextResponse:
            return PlainTextResponse("mine", 418)

        app = FastAPI(exception_handlers={DeadlineExceeded: late})
        MeshFastAPI(app, mesh)

        @app.get("/")
        def route() -> None:
            raise DeadlineExceeded("late")

        assert TestClient(app).get("/").status_code == 418


class TestLifespan:
    def test_the_apps_own_runs_inside(self, mesh: Mesh) -> None:
        said: list[str] = []

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
            said.append(f"up, {app.state.mesh is mesh}")
            yield {"pool": "open"}
            said.append("down")

        app = FastAPI(lifespan=lifespan)
        MeshFastAPI(app, mesh)

        @app.get("/")
        def route(request: Request) -> str:
            return str(request.state.pool)

        with TestClient(app) as client:
            assert client.get("/").json() == "open"
            assert said == ["up, True"]
        assert said == ["up, True", "down"]

    def test_registrations_end_before_the_apps_lifespan_does(self, tmp_path: Path) -> None:
        """What is still served then needs what the lifespan holds."""
        registered: list[int] = []

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            registered.append(len(app.state.mesh._registrations))

        mesh = Mesh(Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders"))
        app = FastAPI(lifespan=lifespan)
        MeshFastAPI(app, mesh)
        with TestClient(app) as client:
            mesh.register(8000).wait()
            assert client.get("/readyz").status_code == 200
            assert len(mesh._registrations) == 1
        assert registered == [0]
        assert mesh._worker.running, "a mesh that was given stays open"
        mesh.close()

    def test_a_mesh_of_its_own_is_closed_with_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("MESH_REGISTRY", f"memory://{tmp_path}")
        monkeypatch.setenv("MESH_STATE_DIR", str(tmp_path))
        app = FastAPI()
        mesh = MeshFastAPI(app).mesh
        with TestClient(app):
            mesh.services()
            assert mesh._worker.running
        assert not mesh._worker.running

    def test_it_is_announced_when_it_has_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        announced: list[object] = []
        monkeypatch.setattr("meshlib.announcement.Announcement", lambda *given: announced.append(given))
        app = FastAPI()
        with Mesh(Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders")) as mesh:
            MeshFastAPI(app, mesh)
            assert announced == []
            with TestClient(app):
                assert len(announced) == 1


class TestManagement:
    def test_pages_are_served_and_not_in_the_schema(self, app: FastAPI, mesh: Mesh) -> None:
        client = TestClient(app)
        for path in ("/healthz", "/readyz", "/actuator/health", "/actuator/info"):
            assert client.get(path).status_code == 200
        assert app.openapi()["paths"] == {}
        mesh.in_flight.draining = True
        assert client.get("/readyz").status_code == 503

    @pytest.mark.parametrize("included", [False, True])
    def test_a_route_of_the_apps_own_wins(self, app: FastAPI, included: bool) -> None:
        router = APIRouter() if included else app.router

        @router.get("/healthz")
        def mine() -> str:
            return "mine"

        if included:
            app.include_router(router)
        assert TestClient(app).get("/healthz").json() == "mine"

    def test_one_that_takes_everything_does_not(self, app: FastAPI) -> None:
        @app.get("/{path:path}")
        def page(path: str) -> str:
            return path

        client = TestClient(app)
        assert client.get("/readyz").json()["status"] == "UP"
        assert client.get("/about").json() == "about"

    def test_a_dependency_of_the_whole_app_does_not_bar_them(self, mesh: Mesh) -> None:
        def denied() -> None:
            raise AssertionError("asked")

        app = FastAPI(dependencies=[Depends(denied)])
        MeshFastAPI(app, mesh)
        assert TestClient(app).get("/readyz").status_code == 200


class TestStarlette:
    def test_it_is_the_same(self, mesh: Mesh) -> None:
        def level(request: Request) -> PlainTextResponse:
            return PlainTextResponse(str(starlette.client(request, Stock).level("tea")))

        @rate_limit("1/h")
        async def limited(_: Request) -> PlainTextResponse:
            return PlainTextResponse("once")

        routes = [Route("/level", level), Mount("/sub", routes=[Route("/level", level)]), Route("/limited", limited)]
        app = Starlette(routes=routes)
        MeshStarlette(app, mesh)
        client = TestClient(app)
        assert client.get("/level").text == client.get("/sub/level").text == "7"
        assert [client.get("/limited").status_code for _ in range(2)] == [200, 429]
        assert client.get("/actuator/health").json()["status"] == "UP"

    def test_one_mesh_per_app(self, app: FastAPI, mesh: Mesh) -> None:
        with pytest.raises(ConfigError, match="has a mesh already"):
            MeshFastAPI(app, mesh)
