"""The same under an ASGI server, in a framework: it leaves the mesh before it stops to accept."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from meshlib_contrib.starlette import MeshStarlette


async def order(request: Request) -> JSONResponse:
    """``/orders/{id}``."""
    return JSONResponse({"id": request.path_params["id"], "item": "tea", "served_by": os.environ["MESH_PORT"]})


app = Starlette(routes=[Route("/orders/{id:int}", order, methods=["GET", "POST"])])
MeshStarlette(app)
