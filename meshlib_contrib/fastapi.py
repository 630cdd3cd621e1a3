"""FastAPI: ``MeshFastAPI(app)``, and ``Annotated[Orders, Client(Orders)]`` for what a route calls.

    app = FastAPI()
    MeshFastAPI(app)

    @app.get("/orders/{id}")
    @rate_limit("100/second")
    async def order(id: int, stock: Annotated[Stock, Client(Stock)]) -> Order: ...

Policies stand below the route's own decorator; they need no ``request`` parameter, and what they refuse is answered with
problem details. Neither they nor the client show in the OpenAPI schema; the management endpoints do not, either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any, TypeVar

from meshlib_contrib.extras import needs

with needs("fastapi"):
    import fastapi
    import fastapi.params
    import fastapi.routing
    from fastapi.requests import HTTPConnection

from meshlib import Mesh
from meshlib_contrib import starlette

__all__ = ["Client", "MeshFastAPI", "client_of"]

C = TypeVar("C")


class MeshFastAPI(starlette.MeshStarlette):
    """See :class:`meshlib_contrib.starlette.MeshStarlette`: all of it holds for FastAPI."""

    def __init__(self, app: fastapi.FastAPI, mesh: Mesh | None = None, **options: Any) -> None:
        super().__init__(app, mesh, **options)

    def flat(self, routes: Iterable[Any]) -> Iterable[Any]:
        """Those of included routers, too, which newer versions of FastAPI keep apart."""
        flattened: Callable[[Any], Iterable[Any]] = getattr(fastapi.routing, "iter_route_contexts", iter)
        return flattened(routes)


def Client(cls: Callable[..., Any]) -> Any:  # noqa: N802 - it stands where Depends does
    """A dependency: the client of the Protocol ``cls``, of the mesh of the app that serves the request."""
    return _Dependency(client_of(cls))


class _Dependency(fastapi.params.Depends):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a dependency has no {name!r}: FastAPI puts the client in its place, for a parameter of a route: "
                             "orders: Annotated[Orders, Client(Orders)]; elsewhere use mesh.client(Orders)")  # fmt: skip


@cache
def client_of(cls: Callable[..., C]) -> Callable[[HTTPConnection], Awaitable[C]]:
    """The callable that :func:`Client` depends on, always the same one: the key for ``app.dependency_overrides``."""

    async def client(connection: HTTPConnection) -> C:
        return starlette.client(connection, cls)

    return client
