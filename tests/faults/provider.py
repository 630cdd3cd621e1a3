"""A provider of "orders" for the fault tests: ``python -m tests.faults.provider [--abrupt]``. Says its port in one line.

It answers ``/orders/{id}`` to any method, after ``delay`` milliseconds where the query says so. SIGTERM makes it leave as
examples/provider_asgi.py does; with ``--abrupt`` it dies at once, in the middle of whatever it does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from typing import Any

import uvicorn

from examples.provider_asgi import Server
from meshlib import Mesh


class Abrupt(Server):
    """Leaves without a word."""

    def handle_exit(self, _sig: int, _frame: Any) -> None:
        os._exit(0)


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    mesh = Mesh.from_env()
    listener = mesh.listen()
    port: int = listener.getsockname()[1]

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        path, query = scope["path"], scope["query_string"].decode()
        if query.startswith("delay="):
            await asyncio.sleep(float(query.removeprefix("delay=")) / 1000)
        order = {"id": int(path.rpartition("/")[2]), "item": "tea", "served_by": f"{port}"}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(order).encode()})

    print(port, flush=True)
    governed = mesh.asgi(app)
    config = uvicorn.Config(governed, log_level="error", lifespan="off", timeout_graceful_shutdown=30, timeout_keep_alive=60)
    (Abrupt if "--abrupt" in sys.argv else Server)(config, mesh, port).run(sockets=[listener])


if __name__ == "__main__":
    main()
