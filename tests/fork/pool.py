"""A prefork server as people write them: ``python -m tests.fork.pool fork|spawn COUNT``.

The parent listens at ``MESH_PORT`` and keeps COUNT children of multiprocessing. SIGHUP replaces them one by one, SIGTERM ends
all.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class Handler(WSGIRequestHandler):
    """Keeps quiet about every request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(WSGIServer):
    """One that shares its socket with others: somebody else may have taken the connection."""

    timeout = 0.1

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = "127.0.0.1", listener.getsockname()[1]
        self.setup_environ()

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.setblocking(True)
        super().finish_request(request, client_address)


def child(listener: socket.socket, ready: Connection) -> None:
    """Serve, in a process of its own."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    listener.setblocking(False)
    server = Server(listener)
    server.set_app(importlib.import_module("tests.fork.app").wsgi)
    with suppress(BrokenPipeError):  # nobody waits
        ready.send(True)
    while not stopping.is_set():
        server.handle_request()


class Supervisor:
    """Keeps ``count`` children."""

    def __init__(self, method: str, count: int) -> None:
        self.context: Any = multiprocessing.get_context(method)
        self.listener = socket.create_server(("127.0.0.1", int(os.environ["MESH_PORT"])), backlog=256)
        self.children = [self.start() for _ in range(count)]

    def start(self, *, wait: bool = False) -> BaseProcess:
        """A new child; ``wait`` until it serves."""
        heard, ready = self.context.Pipe(duplex=False)
        process: BaseProcess = self.context.Process(target=child, args=(self.listener, ready))
        process.start()
        ready.close()
        with heard:
            if wait and heard.poll(100):
                heard.recv()
        return process

    def replace(self) -> None:
        """Each by a new one, which serves before the old one is stopped."""
        for index, old in enumerate(self.children):
            self.children[index] = self.start(wait=True)
            old.terminate()

    def stop(self) -> None:
        """All of them."""
        self.listener.close()
        for each in self.children:
            each.terminate()
        for each in self.children:
            each.join()

    def run(self, signals: queue.SimpleQueue[int]) -> None:
        """Until SIGTERM."""
        while True:
            try:
                got = signals.get(timeout=0.1)
            except queue.Empty:
                got = 0
            if got == signal.SIGTERM:
                return self.stop()
            if got == signal.SIGHUP:
                self.replace()
            self.children = [each if each.is_alive() else self.start() for each in self.children]


def main() -> None:
    """Serve until SIGTERM."""
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: signals.put(got))
    Supervisor(sys.argv[1], int(sys.argv[2])).run(signals)


if __name__ == "__main__":
    main()
