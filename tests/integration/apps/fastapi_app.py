"""FastAPI, under an ASGI server."""

from __future__ import annotations

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
