"""A provider of "orders" in plain ASGI, served by uvicorn (``pip install uvicorn``):

MESH_SERVICE=orders MESH_PORT=8082 python -m examples.provider_asgi
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn

from meshlib import Mesh


def main() -> None:
    """Listen, register, serve until SIGTERM or Ctrl-C."""
    mesh = Mesh.from_env()
    listener = mesh.listen()
    port: int = listener.getsockname()[1]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        order = {"id": int(scope["path"].rpartition("/")[2]), "item": "tea", "served_by": f"port {port}"}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(order).encode()})

    print(f"{mesh.settings.service} listens on port {port}", flush=True)
    config = uvicorn.Config(mesh.asgi(app), log_level="warning", lifespan="off", timeout_graceful_shutdown=30)
    Server(config, mesh, port).run(sockets=[listener])


class Server(uvicorn.Server):
    """Leaves the mesh before uvicorn stops accepting: its own shutdown closes the listener first."""

    def __init__(self, config: uvicorn.Config, mesh: Mesh, port: int) -> None:
        super().__init__(config)
        self._mesh, self._port = mesh, port

    async def startup(self, sockets: Any = None) -> None:
        """Start to serve, then register."""
        await super().startup(sockets)
        self._registration = self._mesh.register(self._port)

    async def shutdown(self, sockets: Any = None) -> None:
        """Deregister and drain while still serving, then stop. All of it here: uvicorn ends by the signal that it got, so
        nothing that follows run() is certain to be reached."""
        await asyncio.to_thread(self._registration.close)
        await super().shutdown(sockets)
        await asyncio.to_thread(self._mesh.close)


if __name__ == "__main__":
    main()
