"""Instances of "orders" that can be made to misbehave: ``python -m tests.faults.unequal COUNT``. One process serves them all,
each at a port of its own, and says the ports in one line.

Each line on standard input is ``PORT DELAY FAILING``: the instance answers after DELAY milliseconds, and every FAILING-th
answer is a 500 without any delay (0: none).
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import threading
from typing import Any

import uvicorn

DELAY = 20.0
"""Milliseconds a healthy instance takes."""


class Manners:
    """How one instance behaves."""

    def __init__(self) -> None:
        self.delay, self.failing = DELAY, 0
        self.answers = itertools.count(1)

    async def status(self) -> int:
        if self.failing and not next(self.answers) % self.failing:
            return 500
        await asyncio.sleep(self.delay / 1000)
        return 200


def listener() -> socket.socket:
    """Saying TCP, so that asyncio turns Nagle's algorithm off: with it, every answer would take 40 ms more."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.bind(("127.0.0.1", 0))
    made.listen(512)
    return made


def main() -> None:
    """Serve until standard input ends."""
    sockets = [listener() for _ in range(int(sys.argv[1]))]
    manners = {each.getsockname()[1]: Manners() for each in sockets}
    print(*manners, flush=True)

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        port = scope["server"][1]
        status = await manners[port].status()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": str(port).encode()})

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_keep_alive=60))

    def listen() -> None:
        for line in sys.stdin:
            port, delay, failing = line.split()
            manners[int(port)].delay, manners[int(port)].failing = float(delay), int(failing)
        server.should_exit = True

    threading.Thread(target=listen, daemon=True).start()
    server.run(sockets=sockets)


if __name__ == "__main__":
    main()
