"""A consumer of "orders" in plain WSGI: every request to it is answered with an order it fetched.

MESH_PORT=8090 python -m examples.consumer_wsgi, then curl localhost:8090/7
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from examples.orders import Orders
from examples.wsgi_server import serve
from meshlib import CallError, Mesh


def main() -> None:
    """Serve until SIGTERM. A consumer need not be registered itself."""
    mesh = Mesh.from_env()
    orders = mesh.client(Orders)
    listener = mesh.listen()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            order = orders.fetch(int(environ["PATH_INFO"].strip("/") or 1))
        except CallError as error:
            start_response("502 Bad Gateway", [("Content-Type", "text/plain")])
            return [f"{error}\n".encode()]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"order {order.id}: {order.item}, served by {order.served_by}\n".encode()]

    print(f"the consumer listens on port {listener.getsockname()[1]}", flush=True)
    serve(app, listener, nullcontext())
    mesh.close()


if __name__ == "__main__":
    main()
