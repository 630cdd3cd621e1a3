"""A consumer of "orders" in plain ASGI, served by uvicorn (``pip install uvicorn``):

MESH_PORT=8091 python -m examples.consumer_asgi, then curl localhost:8091/7
"""

from __future__ import annotations

from typing import Any

import uvicorn

from examples.orders import Orders
from meshlib import CallError, Mesh


def main() -> None:
    """Serve until SIGTERM or Ctrl-C. A consumer need not be registered itself."""
    mesh = Mesh.from_env()
    orders = mesh.client(Orders)
    listener = mesh.listen()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        try:
            order = await orders.afetch(int(scope["path"].strip("/") or 1))
            status, text = 200, f"order {order.id}: {order.item}, served by {order.served_by}\n"
        except CallError as error:
            status, text = 502, f"{error}\n"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": text.encode()})

    print(f"the consumer listens on port {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listener])
    mesh.close()


if __name__ == "__main__":
    main()
