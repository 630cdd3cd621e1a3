"""What looks like an empty Consul, at any address, with a clock of its own."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeConsul:
    """``skew`` is how far its clock is ahead of ours, in seconds."""

    def __init__(self, host: str = "127.0.0.1", *, skew: float = 0.0) -> None:
        self.skew = skew
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(time.time() + outer.skew, usegmt=True)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                known = {"/v1/status/leader": b'"10.0.0.1:8300"', "/v1/catalog/services": b"{}"}
                listing = path.startswith("/v1/health/service/")
                self.say(200 if path in known or listing else 404, known.get(path, b"[]" if listing else b""))

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path.startswith("/v1/txn"):
                    self.say(409, b'{"Results":null,"Errors":[{"OpIndex":0,"What":"index is stale"}]}')
                else:
                    self.say(200, b"false" if "cas=" in self.path else b"true")

            def say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Consul-Index", "7")
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"consul://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
