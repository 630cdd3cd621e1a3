"""A provider of "orders" in plain WSGI. From the top of a clone:

MESH_SERVICE=orders MESH_PORT=8081 python -m examples.provider_wsgi
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from examples.wsgi_server import serve
from meshlib import Mesh


def main() -> None:
    """Listen, register, serve until SIGTERM."""
    mesh = Mesh.from_env()
    listener = mesh.listen()
    port: int = listener.getsockname()[1]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        order = {"id": int(environ["PATH_INFO"].rpartition("/")[2]), "item": "tea", "served_by": f"port {port}"}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(order).encode()]

    print(f"{mesh.settings.service} listens on port {port}", flush=True)
    serve(mesh.wsgi(app), listener, mesh.register(port))
    mesh.close()


if __name__ == "__main__":
    main()
