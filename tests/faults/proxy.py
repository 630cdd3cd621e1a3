"""A TCP proxy between a client and a server that misbehaves on demand, for what no signal can do to a process."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self

CHUNK = 64 * 1024


class Proxy:
    """Forwards connections to ``host``:``port`` from a free port of its own, :attr:`port`, in threads.

    :meth:`stall` is a network that drops packets for a while, as well as a proxy can do it: connections stay open and new
    ones are accepted, but nothing is forwarded before :meth:`resume`. :meth:`cut` is a firewall that has forgotten the
    connections of now: they stay open and silent for good.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.delay = 0.0
        """Seconds that every chunk is held back, in both directions."""
        self._flowing = threading.Event()
        self._flowing.set()
        self._generation = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Hold back everything until :meth:`resume`."""
        self._flowing.clear()

    def cut(self) -> None:
        """Never again forward what is sent on the connections of now; new ones are forwarded."""
        self._generation += 1

    def resume(self) -> None:
        """Forward again, first what was held back."""
        self._flowing.set()

    def close(self) -> None:
        """Stop listening and end all connections."""
        _close(self._listener)
        self._flowing.set()
        for one in self._open:
            _close(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        generation = self._generation
        self._flowing.wait()
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            _close(client)
            return
        server.settimeout(None)
        self._open += [client, server]
        threading.Thread(target=self._pump, args=(server, client, generation), daemon=True).start()
        self._pump(client, server, generation)

    def _pump(self, source: socket.socket, sink: socket.socket, generation: int) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                time.sleep(self.delay)
                self._flowing.wait()
                if generation == self._generation:
                    sink.sendall(chunk)
        _close(source)
        _close(sink)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
    one.close()
