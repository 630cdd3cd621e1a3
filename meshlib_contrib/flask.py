"""Flask: ``MeshFlask(app)``, or ``init_app`` in an app factory.

    mesh = MeshFlask()
    orders = mesh.client(Orders)      # used in views

    def create_app():
        app = Flask(__name__)
        mesh.init_app(app)
        return app

Settings come from ``app.config``, under the environment: ``MESH_PORT``…, or one dict ``MESH``. ``current_app.extensions
["mesh"]`` is the :class:`meshlib.Mesh`. Policies decorate views, ``def`` and ``async def``, below ``@app.route``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from meshlib_contrib.extras import needs

with needs("flask"):
    from flask import Blueprint, Flask, Response, current_app, request
    from werkzeug.local import LocalProxy

from meshlib import Mesh, Settings
from meshlib.errors import ConfigError
from meshlib.management.mounting import ask_of
from meshlib_contrib import flask_cli, stopping, werkzeug
from meshlib_contrib.problems import HANDLED, problem, warn_of_misplaced

C = TypeVar("C")

EXTENSION = "mesh"


class MeshFlask:
    """Makes ``app`` a member of the mesh: its requests are counted and bounded by their deadlines, the management endpoints
    are its blueprint ``mesh`` (hooks of the app see them, too), ``flask mesh`` its commands, and with ``MESH_SERVICE`` it is
    registered as soon as its server listens, and leaves when it stops.

    ``mesh`` defaults to one per app, made of its config and the environment; ``options`` are those of
    :meth:`meshlib.Mesh.wsgi`. Raises :class:`ConfigError`.
    """

    def __init__(self, app: Flask | None = None, mesh: Mesh | None = None, **options: Any) -> None:
        self._mesh, self._options = mesh, {"management": False, **options}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Once per app, after its config is loaded."""
        if EXTENSION in app.extensions:
            raise ConfigError("MeshFlask", "this app has a mesh already", example="MeshFlask(app) or init_app(app), once")
        mesh = app.extensions[EXTENSION] = self._mesh or Mesh(settings_of(app))
        if mesh.management.paths:
            app.register_blueprint(pages(mesh))
        # The pages are routes of the app: they go to it directly, past what counts and limits.
        served = mesh.management.wsgi(mesh.wsgi(app.wsgi_app, **self._options), app.wsgi_app)
        app.wsgi_app = served  # type: ignore[method-assign, assignment]
        for kind in HANDLED:
            app.register_error_handler(kind, refused)
        app.cli.add_command(flask_cli.command)
        app.before_request(_Look(app))
        if serves():
            mesh.announce(werkzeug.listening)
            stopping.leave_first(mesh)

    @property
    def mesh(self) -> Mesh:
        """The mesh of the current app."""
        return mesh_of(current_app)

    def client(self, cls: Callable[..., C]) -> C:
        """The client of the Protocol ``cls``, for use in views and wherever there is a current app. It may be taken before
        there is any: each app's own is made when it is first used there, once."""

        def of_current() -> C:
            made = current_app.extensions.setdefault("mesh clients", {})
            if cls not in made:
                made[cls] = self.mesh.client(cls)
            return cast("C", made[cls])

        return cast("C", LocalProxy(of_current))


class _Look:
    """Before the first request: whether the policies of views are where they are asked."""

    def __init__(self, app: Flask) -> None:
        self._app, self._done = app, False

    def __call__(self) -> None:
        if not self._done:
            self._done = True
            warn_of_misplaced(self._app.view_functions.values(), "@app.route")


def mesh_of(app: Flask) -> Mesh:
    """The mesh of ``app``. Raises :class:`ConfigError` where it has none."""
    mesh = app.extensions.get(EXTENSION)
    if not isinstance(mesh, Mesh):
        raise ConfigError("MeshFlask", f"the app {app.name!r} has no mesh", example="MeshFlask(app), or init_app(app)")
    return mesh


def settings_of(app: Flask) -> Settings:
    """The app's settings under the environment's: the dict ``MESH`` of its config, and each ``MESH_*`` of it."""
    named, whole = {key: value for key, value in app.config.items() if key.startswith("MESH_")}, app.config.get("MESH", {})
    if not isinstance(whole, Mapping):
        raise ConfigError("MESH", f"is a {type(whole).__name__}, and no dict of settings", source="app.config",
                          example='MESH={"SERVICE": "orders"}')  # fmt: skip
    return Settings.load(framework={**whole, **named}, source="app.config")


def serves() -> bool:
    """False for the other commands of ``flask``: they load the app, and serve nobody."""
    return os.environ.get("FLASK_RUN_FROM_CLI") != "true" or "run" in sys.argv[1:]


def pages(mesh: Mesh) -> Blueprint:
    """The management endpoints as a blueprint."""
    blueprint = Blueprint("mesh", __name__)

    def page() -> Response:
        answer = mesh.management.answer(ask_of(request.environ))
        return Response(answer.body, answer.status, answer.headers)

    for path in mesh.management.paths:
        name = path.strip("/").replace("/", "-")
        blueprint.add_url_rule(path, name, page, methods=["GET"])
    return blueprint


def refused(error: Any) -> Response:
    """The answer to a request that was refused, or for which no time was left."""
    status, headers, body = problem(error)
    return Response(body, status, headers)
