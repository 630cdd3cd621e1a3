"""A TCP proxy between a client and a server that misbehaves on demand, for what no signal can do to a process."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Self

CHUNK = 64 * 1024
TICK = 0.05
"""Seconds between two looks at whether a connection that is held back has ended."""
RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing sends RST and no FIN."""


class Link:
    """A client's connection and ours to the server behind."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.silent = self.ended = False
        self.said, self.answered = b"", False
        """The client's last chunk that was passed on, and whether the server has answered since."""
        self._pumps = 2
        self._lock = threading.Lock()

    def end(self, *, reset: bool) -> None:
        """Wake the threads that read; the last of them closes. The receiving half alone tells the other side nothing yet,
        so that closing can send RST."""
        self.ended = True
        for one in (self.client, self.server):
            with suppress(OSError):
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                one.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)

    def leave(self) -> bool:
        """One direction is done. True when both are, and the connections closed."""
        if not self.ended:
            self.end(reset=False)
        with self._lock:
            self._pumps -= 1
            if self._pumps:
                return False
        self.client.close()
        self.server.close()
        return True


class Proxy:
    """Forwards connections to ``host``:``port`` from a free port of its own, :attr:`port`, in threads.

    What goes wrong is said by its attributes, at any time, for both directions; ``random`` decides what they leave open.
    :meth:`stall` is a network that drops packets for a while, as well as a proxy can do it: connections stay open and new
    ones are accepted, but nothing is forwarded before :meth:`resume`. :meth:`forget` is a firewall that has forgotten the
    connections of now: they stay open and silent for good. :meth:`cut` ends them.
    """

    def __init__(self, host: str, port: int, *, random: Random | None = None) -> None:
        self.target = (host, port)
        self.delay = 0.0
        """Seconds that every chunk is held back."""
        self.rate = 0.0
        """Bytes per second that a connection carries in each direction; 0 for all there are."""
        self.corrupt = 0.0
        """Share of chunks in which one byte's highest bit is flipped: no ASCII any more, so it can be noticed."""
        self.asked = 0
        """Chunks of clients that were passed on: small requests, each as one."""
        self._random = random or Random()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._links: set[Link] = set()
        self._threads: set[threading.Thread] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._closed = False
        self._accepting = self._start(self._accept)

    def stall(self) -> None:
        """Hold back everything until :meth:`resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward again, first what was held back."""
        self._flowing.set()

    def forget(self) -> None:
        """Never again forward what is sent on the connections of now; new ones are forwarded."""
        for link in self._now():
            link.silent = True

    def cut(self, *, reset: bool = False) -> None:
        """End the connections of now, with FIN or with RST; new ones are forwarded."""
        for link in self._now():
            link.end(reset=reset)

    def heal(self) -> None:
        """Forward again as any wire does. What was forgotten or cut stays so."""
        self.delay = self.rate = self.corrupt = 0.0
        self.resume()

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._accepting.join(5)  # first, for there to be no new connections
        self.cut()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(5)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def holds(self, said: bytes, *, answered: bool) -> bool:
        """True when the last that a client said has ``said`` in it, and the server has begun to answer it, or has not."""
        return any(said in link.said and link.answered is answered for link in self._now())

    def _now(self) -> list[Link]:
        with self._lock:
            return list(self._links)

    def _start(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        def run() -> None:
            work(*arguments)
            with self._lock:
                self._threads.discard(thread)

        thread = threading.Thread(target=run, daemon=True)
        with self._lock:
            self._threads.add(thread)
            thread.start()  # here, or close() may come before and have nothing to join
        return thread

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        while not self._flowing.wait(TICK) and not self._closed:
            pass
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        link = Link(client, server)
        with self._lock:
            self._links.add(link)
        if self._closed:
            link.end(reset=False)
        self._start(self._pump, link, server, client)
        self._pump(link, client, server)

    def _pump(self, link: Link, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(self._portion()):
                time.sleep(self.delay + (len(chunk) / self.rate if self.rate else 0.0))
                while not self._flowing.wait(TICK) and not link.ended:
                    pass
                if not link.silent:
                    if sink is link.server:
                        link.said, link.answered = chunk, False
                        self.asked += 1
                    else:
                        link.answered = True
                    sink.sendall(self._damaged(chunk))
        if link.leave():
            with self._lock:
                self._links.discard(link)

    def _portion(self) -> int:
        return min(CHUNK, max(1, int(self.rate * TICK))) if self.rate else CHUNK

    def _damaged(self, chunk: bytes) -> bytes:
        with self._lock:
            if not self.corrupt or self._random.random() >= self.corrupt:
                return chunk
            where = self._random.randrange(len(chunk))
        return chunk[:where] + bytes([chunk[where] ^ 0x80]) + chunk[where + 1 :]
