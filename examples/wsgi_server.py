"""The standard library's WSGI server on a socket that already listens, stopped by SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import AbstractContextManager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

STOP = {signal.SIGTERM, signal.SIGINT}


class Server(ThreadingMixIn, WSGIServer):
    """One thread per connection."""

    daemon_threads = True


class Handler(WSGIRequestHandler):
    """Keeps quiet about every request."""

    def log_message(self, format: str, *args: object) -> None:  # the name is the base class's
        """Say nothing."""


def serve(app: Any, listener: socket.socket, registered: AbstractContextManager[object]) -> None:
    """Serve ``app`` on ``listener`` for as long as nobody sends SIGTERM, inside the context ``registered``.

    The order matters: leaving the context deregisters, waits until consumers know, and drains, while the server still
    serves; only then is it stopped.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    host, port = listener.getsockname()[:2]
    server = Server((host, port), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_name, server.server_port = listener, host, port
    server.setup_environ()
    server.set_app(app)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    with registered:
        signal.sigwait(STOP)
    server.shutdown()
    server.server_close()
