"""A connection to a socket of ``mesh.listen()`` answers at once: no 40 ms of Nagle's algorithm meeting a delayed
acknowledgement, which is what an answer in two pieces (head and body) on a connection in use gets otherwise."""

from __future__ import annotations

import socket
import statistics
import time

from meshlib import Mesh, RegistryUrl, Settings

ROUNDS = 40
NAGLE = 0.02
"""Seconds; Linux delays an acknowledgement by 40 ms, but not those of the first packets of a connection."""


def answer_time(listener: socket.socket) -> float:
    """Seconds from a question to its answer, the median of the last rounds on one connection."""
    taken = []
    with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(ROUNDS):
            started = time.monotonic()
            client.sendall(b"?")
            server.recv(1)
            for piece in (b"head", b"body"):
                server.sendall(piece)
            while client.recv(4)[-1:] != b"y":
                pass
            taken.append(time.monotonic() - started)
    return statistics.median(taken[-10:])


def test_answers_in_two_pieces_do_not_wait() -> None:
    with Mesh(Settings(registry=RegistryUrl.parse("memory://latency"), host="127.0.0.1")).listen(0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # by which asyncio goes
        assert answer_time(listener) < NAGLE


def test_at_a_plain_socket_they_do() -> None:
    """Unless there was a pause: then Linux acknowledges the next few at once. So where the machine stumbles, another try."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert any(answer_time(listener) > NAGLE for _ in range(8))
