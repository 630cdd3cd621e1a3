"""A TCP relay in front of a server, whose connections a test can cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Relay:
    """Listens on ``port`` of the loopback and passes everything on to ``target``, until :meth:`close`. ``asked`` counts what
    came from the clients and was passed on: small requests, each as one."""

    def __init__(self, target: int) -> None:
        self.target, self.links = target, list[tuple[socket.socket, socket.socket]]()
        self.asked = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                front, _ = self.listener.accept()
                back = socket.create_connection(("127.0.0.1", self.target))
                self.links.append((front, back))
                for source, sink in ((front, back), (back, front)):
                    self.threads.append(threading.Thread(target=self._pump, args=(source, sink), daemon=True))
                    self.threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                self.asked += sink.getpeername()[1] == self.target
        _shut(sink)

    def cut(self) -> None:
        """End all connections, in both directions. New ones are still taken."""
        for pair in self.links:
            for one in pair:
                _shut(one)

    def close(self) -> None:
        """Cut, and take no more."""
        _shut(self.listener)
        self.cut()
        for thread in self.threads:
            thread.join(5)
        for one in (self.listener, *(one for pair in self.links for one in pair)):
            one.close()


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
