"""Litestar, under an ASGI server. It calls itself by its name."""

from __future__ import annotations

import os

from litestar import Litestar, MediaType, get
from litestar.di import NamedDependency

from meshlib import Mesh
from meshlib_contrib.litestar import MeshPlugin


@get("/drain", sync_to_thread=False)
def drain(mesh: NamedDependency[Mesh]) -> str:
    """Have it drained, if it is registered."""
    found = list(mesh._registrations)
    for registration in found:
        registration.drain()
    return "draining" if found else "nothing"


@get("/call")
async def call(mesh: NamedDependency[Mesh]) -> bytes:
    """Call itself."""
    async with mesh.ahttp("shop") as http:
        return (await http.get("/pid")).content


@get("/pid", media_type=MediaType.TEXT)
async def pid() -> str:
    """Say who serves."""
    return str(os.getpid())


app = Litestar([drain, call, pid], plugins=[MeshPlugin()])
