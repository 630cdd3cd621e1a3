"""The service "orders" for the rolling restart: what tests/faults/provider.py is, under a prefork server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from meshlib import Mesh

mesh = Mesh.from_env()
registration = mesh.register()
PORT = os.environ["MESH_PORT"]


@mesh.wsgi
def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """``/orders/{id}``."""
    order = {"id": int(environ["PATH_INFO"].rpartition("/")[2]), "item": "tea", "served_by": PORT}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(order).encode()]
