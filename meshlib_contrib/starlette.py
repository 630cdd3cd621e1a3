"""Starlette: ``MeshStarlette(app)``. What it does stands in :class:`MeshStarlette`; FastAPI has its own module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, MutableMapping
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from meshlib import Mesh
from meshlib.errors import ConfigError
from meshlib.server import AsgiApp
from meshlib_contrib.problems import HANDLED, problem, warn_of_misplaced
from meshlib_contrib.stopping import leave_first

log = logging.getLogger(__name__)

C = TypeVar("C")

KEY: Final = "meshlib"
"""Where a request's scope has the integration: there it is in mounted apps, too."""


class MeshStarlette:
    """Makes ``app`` a member of the mesh: its requests are counted and bounded by their deadlines, the management endpoints
    are served beside it, and with ``MESH_SERVICE`` it is registered once its server listens, and leaves when it stops.

    ``mesh`` defaults to one made of the environment, which is closed with the app's lifespan; one that is given stays yours.
    ``options`` are those of :meth:`meshlib.Mesh.asgi`. ``app.state.mesh`` is the mesh. The app's own lifespan runs inside,
    undisturbed. Raises :class:`ConfigError`.
    """

    def __init__(self, app: Starlette, mesh: Mesh | None = None, **options: Any) -> None:
        if any(isinstance(each.kwargs.get("integration"), MeshStarlette) for each in app.user_middleware):
            raise ConfigError(type(self).__name__, "this app has a mesh already", example="one per app")
        self.mesh, self._owned = mesh or Mesh.from_env(), mesh is None
        self._clients: dict[Any, Any] = {}
        self._app = app
        app.state.mesh = self.mesh
        app.add_middleware(_Middleware, integration=self, options={"own": lambda: self.own_paths(app), **options})
        for kind in HANDLED:
            if kind not in app.exception_handlers:
                app.add_exception_handler(kind, refused)
        self.mesh.announce(at_once=False)

    def client(self, cls: Callable[..., C]) -> C:
        """The client of the Protocol ``cls``, made once."""
        if cls not in self._clients:
            self._clients[cls] = self.mesh.client(cls)
        return self._clients[cls]  # type: ignore[no-any-return]

    def own_paths(self, app: Any) -> Collection[str]:
        """The paths that the app has routes for: there a management endpoint stands back."""
        return {path for route in self.flat(app.routes) if (path := getattr(route, "path", None))}

    def endpoints(self) -> Iterable[Any]:
        """What the app's routes call."""
        return [getattr(route, "endpoint", None) for route in self.flat(self._app.routes)]

    def flat(self, routes: Iterable[Any]) -> Iterable[Any]:
        """``routes``, and those inside of them."""
        return routes

    async def ended(self) -> None:
        """The app's lifespan is over."""
        if self._owned:
            await self.mesh.aclose()


def client(connection: HTTPConnection, cls: Callable[..., C]) -> C:
    """In an endpoint or a dependency: the client of the Protocol ``cls``. Raises :class:`ConfigError` where there is no
    mesh."""
    integration = connection.scope.get(KEY)
    if not isinstance(integration, MeshStarlette):
        raise ConfigError("Client", "this app has no mesh", example="MeshFastAPI(app), or MeshStarlette(app)")
    return integration.client(cls)


async def refused(_request: Request, error: Exception) -> Response:
    """The answer to a request that was refused, or for which no time was left."""
    status, headers, body = problem(error)  # type: ignore[arg-type]
    return Response(body, status, dict(headers))


class _Middleware:
    """The outermost of all that the app had when the mesh came; it hears of the lifespan, too."""

    def __init__(self, app: AsgiApp, integration: MeshStarlette, options: dict[str, Any]) -> None:
        self._integration, self._heard = integration, False
        self._served = integration.mesh.asgi(app, **options)

    def _listen(self, kind: str) -> None:
        """Warn, once, of an app whose lifespan nobody runs: of the parent that it is mounted in only its own is run."""
        if not self._heard and kind != "lifespan" and self._integration.mesh.settings.service:
            log.warning("the lifespan of this app was not run, so %s registers with its first request only, and cannot leave "
                        "in good order: is it mounted in another app, or called by a client that runs none? Give the mesh to "
                        "the outermost app: %s(parent)",
                        self._integration.mesh.settings.service, type(self._integration).__name__)  # fmt: skip
        if not self._heard:
            warn_of_misplaced(self._integration.endpoints(), "@app.get and its like")
        self._heard = True

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def ending(message: MutableMapping[str, Any]) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._integration.ended()
            await send(message)

        self._listen(scope["type"])
        scope[KEY] = self._integration
        if scope["type"] == "lifespan":
            leave_first(self._integration.mesh)
        await self._served(scope, receive, ending if scope["type"] == "lifespan" else send)
