"""Integrations that are put into an app wrongly."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import FastAPI
from flask import Flask
from litestar import Litestar
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from meshlib import ConfigError, get, rate_limit, service_client
from meshlib.testing import MemoryMesh
from meshlib_contrib import starlette
from meshlib_contrib.fastapi import Client, MeshFastAPI
from meshlib_contrib.flask import MeshFlask
from meshlib_contrib.litestar import MeshPlugin
from tests.mistakes.corpus import raises, warns


@service_client("stock")
class Stock(Protocol):
    @get("/stock")
    def level(self) -> int: ...


# -- Flask


@raises(ConfigError, "MeshFlask (from code)", "the app 'shop' has no mesh", "init_app(app)")
def extension_that_was_never_given_the_app() -> None:
    extension, app = MeshFlask(), Flask("shop")
    with app.app_context():
        extension.client(Stock).level()


@raises(ConfigError, "MeshFlask (from code)", "this app has a mesh already", "once")
def extension_that_was_given_the_app_twice() -> None:
    app = Flask("shop")
    app.config["MESH_REGISTRY"] = "memory://"
    MeshFlask(app).init_app(app)


@raises(ConfigError, "MESH (from app.config)", "is a str, and no dict of settings", 'MESH={"SERVICE": "orders"}')
def config_that_is_no_dict() -> None:
    app = Flask("shop")
    app.config["MESH"] = "memory://"
    MeshFlask(app)


@raises(ConfigError, "MESH_REGISTRI (from app.config)", "is not a setting", "registry")
def config_with_a_typo() -> None:
    app = Flask("shop")
    app.config["MESH_REGISTRI"] = "memory://"
    MeshFlask(app)


@warns("the policies of view stand above @app.route", "put them below it")
def policy_above_a_route_of_flask() -> None:
    app = Flask("shop")
    app.config["MESH_REGISTRY"] = "memory://"
    MeshFlask(app)

    def view() -> str:
        return "tea"

    view.__qualname__ = "view"
    rate_limit("1/h")(app.route("/")(view))
    for _ in range(2):
        app.test_client().get("/")


# -- FastAPI and Starlette


@raises(ConfigError, "Client (from code)", "this app has no mesh", "MeshFastAPI(app)")
def dependency_without_an_integration() -> None:
    app = FastAPI()

    @app.get("/")
    def view(stock: Annotated[Any, Client(Stock)]) -> int:
        return stock.level()

    TestClient(app).get("/")


@raises(AttributeError, "a dependency has no 'level'", "Annotated[Orders, Client(Orders)]", "mesh.client(Orders)")
def dependency_outside_of_a_request() -> None:
    Client(Stock).level()


@raises(ConfigError, "MeshFastAPI (from code)", "this app has a mesh already", "one per app")
def two_integrations_in_one_app() -> None:
    with MemoryMesh() as mesh:
        app = FastAPI()
        MeshFastAPI(app, mesh)
        MeshFastAPI(app, mesh)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("tea")(scope, receive, send)


@warns("the lifespan of this app was not run", "orders registers with its first request only", "MeshFastAPI(parent)")
def app_that_is_mounted_in_another() -> None:
    with MemoryMesh(service="orders") as mesh:
        inner = FastAPI(routes=[Mount("/tea", plain)])
        MeshFastAPI(inner, mesh)
        with TestClient(Starlette(routes=[Mount("/shop", inner)])) as client:
            for _ in range(2):
                assert client.get("/shop/tea").text == "tea"


@warns("the lifespan of this app was not run", "called by a client that runs none?", "MeshStarlette(parent)")
def client_that_runs_no_lifespan() -> None:
    with MemoryMesh(service="orders") as mesh:
        app = Starlette(routes=[Mount("/tea", plain)])
        starlette.MeshStarlette(app, mesh)
        assert TestClient(app).get("/tea").text == "tea"


@warns("the policies of view stand above @app.get", "put them below it")
def policy_above_a_route_of_fastapi() -> None:
    with MemoryMesh() as mesh:
        app = FastAPI()
        MeshFastAPI(app, mesh)

        def view() -> str:
            return "tea"

        view.__qualname__ = "view"
        rate_limit("1/h")(app.get("/")(view))
        with TestClient(app) as client:
            client.get("/")


# -- Litestar


@raises(ConfigError, "MeshPlugin (from code)", "this app has a mesh already", "one per app")
def two_plugins_in_one_app_of_litestar() -> None:
    with MemoryMesh() as mesh:
        Litestar(plugins=[MeshPlugin(mesh), MeshPlugin(mesh)])
