"""A provider process of the demo: the standard library's WSGI server, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from meshlib.mesh import Mesh

STOP = {signal.SIGTERM, signal.SIGINT}


class Server(ThreadingMixIn, WSGIServer):
    """One thread per connection."""

    daemon_threads = True


class Handler(WSGIRequestHandler):
    """Keeps quiet about every request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Listen, register, serve; leaving the registration drains while the server still serves."""
    logging.basicConfig(level=logging.ERROR)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    mesh = Mesh.from_env()
    listener = mesh.listen()
    host, port = listener.getsockname()[:2]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        order = {"id": int(environ["PATH_INFO"].rpartition("/")[2]), "item": "tea", "served_by": f"port {port}"}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(order).encode()]

    server = Server((host, port), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_name, server.server_port = listener, host, port
    server.setup_environ()
    server.set_app(mesh.wsgi(app))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    print(f"{mesh.settings.service} listens on port {port}", flush=True)
    with mesh.register(port):
        signal.sigwait(STOP)
    server.shutdown()
    mesh.close()


if __name__ == "__main__":
    main()
