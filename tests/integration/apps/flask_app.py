"""Flask, by ``python -m`` (Werkzeug) or under a WSGI server. It calls itself by its name."""

from __future__ import annotations

import os
import sys

from flask import Flask

from meshlib_contrib.flask import MeshFlask, mesh_of

app = Flask(__name__)
MeshFlask(app)


@app.get("/drain")
def drain() -> str:
    """Have it drained, if it is registered."""
    found = list(mesh_of(app)._registrations)
    for registration in found:
        registration.drain()
    return "draining" if found else "nothing"


@app.get("/call")
def call() -> bytes:
    """Call itself."""
    with mesh_of(app).http("shop") as http:
        return http.get("/pid").content


@app.get("/pid")
def pid() -> str:
    """Say who serves."""
    return str(os.getpid())


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
