"""The Flask integration, by Flask's own test client and command runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest
from flask import Flask, current_app

from meshlib import ConfigError, Mesh, Settings, bulkhead, get, rate_limit, service_client
from meshlib.discovery.listening import Listener
from meshlib.errors import DeadlineExceeded, Refused
from meshlib_contrib import stopping, werkzeug
from meshlib_contrib.flask import MeshFlask, mesh_of, settings_of


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


@pytest.fixture
def app(mesh: Mesh) -> Flask:
    app = Flask(__name__)
    MeshFlask(app, mesh)
    return app


class TestApp:
    def test_what_an_app_has(self, app: Flask, mesh: Mesh) -> None:
        assert app.extensions["mesh"] is mesh is mesh_of(app)
        assert "mesh.actuator-health" in app.view_functions
        with pytest.raises(ConfigError, match="has a mesh already"):
            MeshFlask(app)
        with pytest.raises(ConfigError, match="has no mesh"):
            mesh_of(Flask("bare"))

    def test_a_factory_makes_meshes_of_their_own(self) -> None:
        extension = MeshFlask()

        def create_app(picker: str) -> Flask:
            app = Flask(__name__)
            app.config["MESH"] = {"registry": "memory://", "picker": picker}
            extension.init_app(app)
            return app

        one, other = create_app("random"), create_app("round_robin")
        assert mesh_of(one) is not mesh_of(other)
        with other.app_context():
            assert extension.mesh.settings.picker == "round_robin"

    def test_config_is_below_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        app = Flask(__name__)
        app.config.update(MESH={"picker": "random", "zone": "a"}, MESH_ZONE="b", MESH_TTL=30)
        monkeypatch.setenv("MESH_PICKER", "round_robin")
        settings = settings_of(app)
        assert (settings.picker, settings.zone, settings.ttl) == ("round_robin", "b", 30.0)
        assert dict(settings.sources) == {"picker": "environment", "zone": "app.config", "ttl": "app.config"}

    def test_a_wrong_name_in_the_config(self) -> None:
        app = Flask(__name__)
        app.config["MESH_REGISTRI"] = "memory://"
        with pytest.raises(ConfigError, match=r"MESH_REGISTRI \(from app.config\): is not a setting; for example registry"):
            MeshFlask(app)


class TestViews:
    def test_clients(self, mesh: Mesh) -> None:
        """Taken before there is an app, as a module does."""
        extension = MeshFlask(mesh=mesh)
        stock = extension.client(Stock)
        app = Flask(__name__)
        extension.init_app(app)

        @app.get("/<item>")
        def level(item: str) -> str:
            return str(stock.level(item))

        @app.get("/async/<item>")
        async def alevel(item: str) -> str:
            return str(await stock.alevel(item))

        client = app.test_client()
        assert client.get("/tea").text == client.get("/async/tea").text == "7"
        assert len(app.extensions["mesh clients"]) == 1

    @pytest.mark.parametrize("kind", ["def", "async def"])
    def test_a_view_over_its_limit(self, app: Flask, kind: str) -> None:
        def view(number: int) -> str:
            return str(number)

        async def aview(number: int) -> str:
            return str(number)

        chosen: Any = view if kind == "def" else aview
        app.add_url_rule("/<int:number>", view_func=rate_limit("1/h")(chosen))
        client = app.test_client()
        assert client.get("/7").text == "7"
        answer = client.get("/8")
        assert (answer.status_code, answer.content_type) == (429, "application/problem+json")
        assert 3500 < int(answer.headers["Retry-After"]) <= 3600
        assert json.loads(answer.data)["status"] == 429
        assert client.get("/healthz").status_code == 200, "no limit concerns it"

    @pytest.mark.parametrize(("error", "status"), [(DeadlineExceeded("late"), 504), (Refused("nobody at 10.1.1.1"), 503)])
    def test_other_errors(self, app: Flask, error: Exception, status: int) -> None:
        @app.get("/")
        def view() -> str:
            raise error

        answer = app.test_client().get("/")
        assert answer.status_code == status
        assert b"10.1.1.1" not in answer.data

    def test_a_full_bulkhead(self, app: Flask) -> None:
        inner: list[int] = []

        @app.get("/<int:depth>")
        @bulkhead(1)
        def view(depth: int) -> str:
            inner.append(app.test_client().get(f"/{depth - 1}").status_code)
            return "done"

        assert app.test_client().get("/1").status_code == 200
        assert inner == [503]

    def test_an_error_handler_of_the_apps_own(self, app: Flask) -> None:
        @app.errorhandler(DeadlineExceeded)
        def late(_: Exception) -> tuple[str, int]:
            return "mine", 418

        @app.get("/")
        def view() -> str:
            raise DeadlineExceeded("late")

        assert app.test_client().get("/").status_code == 418

    def test_requests_are_counted_and_pages_are_not(self, app: Flask, mesh: Mesh) -> None:
        seen: list[tuple[str, int]] = []

        @app.before_request
        def note() -> None:
            seen.append((current_app.name, len(mesh.in_flight)))

        app.add_url_rule("/", view_func=lambda: "hello")
        client = app.test_client()
        assert client.get("/", buffered=True).text == "hello"
        assert client.get("/readyz").json["status"] == "UP"  # type: ignore[index]
        assert [count for _, count in seen] == [1, 0]


class TestManagement:
    def test_unready(self, app: Flask, mesh: Mesh) -> None:
        mesh.in_flight.draining = True
        assert app.test_client().get("/readyz").status_code == 503
        assert app.test_client().get("/healthz").status_code == 200

    def test_off(self, tmp_path: Path) -> None:
        app = Flask(__name__)
        app.config["MESH"] = {"management": "off", "registry": f"memory://{tmp_path}"}
        MeshFlask(app)
        assert app.test_client().get("/healthz").status_code == 404
        assert "mesh" not in app.blueprints

    def test_a_prefix_and_a_token(self, tmp_path: Path) -> None:
        app = Flask(__name__)
        app.config["MESH"] = {"management_path": "/ops", "management_token": "s3", "registry": f"memory://{tmp_path}"}
        MeshFlask(app)
        client = app.test_client()
        assert client.get("/ops/actuator/info").status_code == 401
        assert client.get("/ops/actuator/info", headers={"Authorization": "Bearer s3"}).status_code == 200


class TestCommands:
    @staticmethod
    def run(app: Flask, *words: str) -> tuple[int, str]:
        result = app.test_cli_runner().invoke(args=["mesh", *words])
        return result.exit_code, result.output

    def test_services(self, app: Flask) -> None:
        assert self.run(app, "services") == (0, "stock\n")

    def test_instances(self, app: Flask) -> None:
        code, output = self.run(app, "instances", "stock")
        assert code == 0
        assert "10.0.0.1:80 " in output
        code, output = self.run(app, "instances", "nothing")
        assert code == 1
        assert "nothing" in output

    def test_explain(self, app: Flask, mesh: Mesh) -> None:
        mesh.client(Stock)
        code, output = self.run(app, "explain", "stock", "--path", "/stock/tea")
        assert code == 0
        assert "GET /stock/tea" in output
        assert "10.0.0.1:80" in output

    def test_health(self, app: Flask, mesh: Mesh) -> None:
        answers = iter([True, False])
        mesh.management.check("database", lambda: next(answers), timeout=60.0)
        code, output = self.run(app, "health")
        assert (code, output.split()) == (0, "check status why database UP -".split())
        code, output = self.run(app, "health", "--json")
        assert (code, json.loads(output)["parts"][0]["status"]) == (1, "DOWN")

    def test_options_and_help_are_those_of_mesh(self, app: Flask) -> None:
        code, output = self.run(app, "instances", "stock", "--json")
        assert (code, json.loads(output)["instances"][0]["host"]) == (0, "10.0.0.1")
        code, output = self.run(app, "--help")
        assert code == 0
        assert "Usage: flask mesh" in output


class TestServing:
    @pytest.mark.parametrize(
        ("from_cli", "words", "announced"),
        [("", ["app.py"], True), ("true", ["flask", "run"], True), ("true", ["flask", "routes"], False)],
    )
    def test_only_what_serves_is_announced(
        self, from_cli: str, words: list[str], announced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLASK_RUN_FROM_CLI", from_cli)
        monkeypatch.setattr("sys.argv", words)
        monkeypatch.setattr(stopping, "leave_first", lambda _: None)
        with Mesh(Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders")) as mesh:
            MeshFlask(Flask(__name__), mesh)
            assert (mesh._announcement is not None) is announced

    def test_the_socket_that_werkzeug_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {3: Listener(9000), 4: Listener(8000)}
        monkeypatch.setattr(werkzeug, "listeners", lambda: found)
        monkeypatch.delenv("WERKZEUG_SERVER_FD", raising=False)
        assert list(werkzeug.listening() or ()) == list(found.values())
        monkeypatch.setenv("WERKZEUG_SERVER_FD", "4")
        assert list(werkzeug.listening() or ()) == [Listener(8000)]
        monkeypatch.setenv("WERKZEUG_SERVER_FD", "7")  # of a parent: not ours
        assert list(werkzeug.listening() or ()) == list(found.values())

    @pytest.mark.parametrize(("child", "serves"), [("", False), ("true", True)])
    def test_the_reloaders_parent_does_not_serve(self, child: str, serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(werkzeug, "listeners", lambda: {4: Listener(8000)})
        monkeypatch.setenv("WERKZEUG_SERVER_FD", "4")
        monkeypatch.setenv("WERKZEUG_RUN_MAIN", child)
        assert list(werkzeug.listening() or ()) == [Listener(8000)]
        inside = {"__name__": "werkzeug._reloader", "listening": werkzeug.listening}
        with nullcontext() if serves else pytest.raises(LookupError):
            exec("listening()", inside)
