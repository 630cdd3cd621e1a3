"""A Redis that keeps nothing on disk."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from tests.servers.base import Server, free_port, need


class RedisServer(Server):
    """One Redis, empty at each start."""

    name = "redis"

    def __init__(self) -> None:
        self.program = need("redis-server")
        super().__init__()
        self.port = free_port()
        self._clients: list[Any] = []

    def command(self) -> list[str]:
        return [self.program, "--port", str(self.port), "--bind", self.host, "--dir", str(self.data), "--save", "",
                "--appendonly", "no"]  # fmt: skip

    def ready(self) -> bool:
        with suppress(OSError), socket.create_connection((self.host, self.port), 1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def client(self, **options: Any) -> Any:
        """A client of the library ``redis``, as its users make it: without any time-out. It is closed with the server."""
        import redis

        made = redis.Redis(self.host, self.port, **options)
        self._clients.append(made)
        return made

    def close(self) -> None:
        super().close()
        for client in self._clients:  # whoever waits for an answer has got an error
            client.close()
