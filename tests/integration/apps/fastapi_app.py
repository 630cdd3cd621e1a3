"""FastAPI, under an ASGI server. It calls itself by its name."""

from __future__ import annotations

import os

from fastapi import FastAPI

from meshlib_contrib.fastapi import MeshFastAPI

app = FastAPI()
mesh = MeshFastAPI(app).mesh


@app.get("/drain")
def drain() -> str:
    """Have it drained, if it is registered."""
    found = list(mesh._registrations)
    for registration in found:
        registration.drain()
    return "draining" if found else "nothing"


@app.get("/call")
async def call() -> int:
    """Call itself."""
    async with mesh.ahttp("shop") as http:
        return int((await http.get("/pid")).content)


@app.get("/pid")
def pid() -> int:
    """Say who serves."""
    return os.getpid()
