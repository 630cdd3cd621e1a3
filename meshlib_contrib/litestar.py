"""Litestar: ``Litestar(..., plugins=[MeshPlugin()])``, and ``client(Orders)`` among the dependencies of what calls others.

@get("/cart", dependencies={"orders": client(Orders)})
async def cart(orders: NamedDependency[Orders]) -> Order: ...

app = Litestar([cart], plugins=[MeshPlugin()])
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast, runtime_checkable

from meshlib_contrib.extras import needs

with needs("litestar"):
    from litestar import Litestar, Request, Response
    from litestar.config.app import AppConfig
    from litestar.di import Provide
    from litestar.plugins import InitPluginProtocol
    from litestar.types import Scope

from meshlib import Mesh
from meshlib.errors import ConfigError
from meshlib.metrics.server import ROUTE
from meshlib.server import AsgiApp
from meshlib_contrib.problems import HANDLED, problem
from meshlib_contrib.stopping import leave_first

C = TypeVar("C")


class MeshPlugin(InitPluginProtocol):
    """Makes an app a member of the mesh: its requests are counted and bounded by their deadlines, the management endpoints are
    served beside it (and stand in no schema), and with ``MESH_SERVICE`` it is registered once its server listens, and leaves
    when it stops. All that begins and ends with the app's lifespan.

    ``mesh`` defaults to one made of the environment, which is closed with the lifespan; one that is given stays yours.
    ``options`` are those of :meth:`meshlib.Mesh.asgi`: ``policies=[shed()]``. ``app.state.mesh`` is the mesh, ``mesh`` a
    dependency that every handler can ask for. Raises :class:`meshlib.ConfigError`.
    """

    def __init__(self, mesh: Mesh | None = None, **options: Any) -> None:
        self.mesh, self._owned, self._options = mesh or Mesh.from_env(), mesh is None, options
        self._clients: dict[Any, Any] = {}

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Called by Litestar, once the app has been configured."""
        if any(isinstance(each, MeshPlugin) and each is not self for each in app_config.plugins):
            raise ConfigError("MeshPlugin", "this app has a mesh already", example="one per app")
        app_config.state.mesh = self.mesh
        app_config.lifespan = [self._lifespan, *app_config.lifespan]  # the first to begin is the last to end
        app_config.exception_handlers = {**dict.fromkeys(HANDLED, refused), **app_config.exception_handlers}
        app_config.dependencies = {"mesh": Provide(lambda: self.mesh, sync_to_thread=False), **app_config.dependencies}
        return app_config

    def client(self, cls: Callable[..., C]) -> C:
        """The client of the Protocol ``cls``, made once."""
        if cls not in self._clients:
            self._clients[cls] = self.mesh.client(cls)
        return cast("C", self._clients[cls])

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        """Around the whole app: what is mounted, not found or refused by it is counted, too."""
        before = app.asgi_handler
        served = self.mesh.asgi(_told(before), **{"own": lambda: own_paths(app), **self._options})
        app.asgi_handler = cast("Any", served)
        self.mesh.management.at_home()
        self.mesh.announce()
        leave_first(self.mesh)
        try:
            yield
        finally:
            await asyncio.to_thread(self.mesh.leave, serving=False)
            app.asgi_handler = before
            if self._owned:
                await self.mesh.aclose()


def client(cls: Callable[..., Any]) -> Provide:
    """A dependency: the client of the Protocol ``cls``, of the mesh of the app that serves the request."""

    def of(scope: Scope) -> Any:
        try:
            return scope["app"].plugins.get(MeshPlugin).client(cls)
        except KeyError:
            raise ConfigError("client", "this app has no mesh", example="Litestar(..., plugins=[MeshPlugin()])") from None

    if getattr(cls, "_is_protocol", False):
        runtime_checkable(cast("Any", cls))  # Litestar asks whether what is injected is an instance of what was wanted
    return Provide(of, sync_to_thread=False)


def own_paths(app: Litestar) -> Collection[str]:
    """The paths that the app has routes for: there a management endpoint stands back."""
    return {route.path for route in app.routes}


def refused(_request: Request[Any, Any, Any], error: Any) -> Response[bytes]:
    """The answer to a request that was refused, or for which no time was left."""
    status, headers, body = problem(error)
    return Response(body, status_code=status, headers=dict(headers))


def _told(app: Any) -> AsgiApp:
    """``app``, which tells its route to whoever counts."""

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            scope[ROUTE] = scope.get("path_template", "")

    return routed
