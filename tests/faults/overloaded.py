"""A provider whose capacity is real, as a process of its own:

    python -m tests.faults.overloaded WORK MILLISECONDS POLICIES

A request takes so many milliseconds of ``WORK``: ``queue``, of a resource that serves one after the other, as a database with one connection
does; or ``block``, of the event loop. ``POLICIES`` is ``shed`` or ``none``. Says its port in one line.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import uvicorn

from meshlib import Mesh, Settings, shed


def app(work: str, service: float) -> Any:
    """The application."""
    resource = asyncio.Lock()

    async def served(_scope: Any, _receive: Any, send: Any) -> None:
        if work == "block":
            time.sleep(service)
        else:
            async with resource:
                await asyncio.sleep(service)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"tea"})

    return served


def main() -> None:
    """Serve until SIGTERM."""
    work, milliseconds, policies = sys.argv[1:]
    mesh = Mesh(Settings(service="orders", registry="memory://overloaded"))
    listener = mesh.listen(0, backlog=1024)
    print(listener.getsockname()[1], flush=True)
    governed = mesh.asgi(app(work, int(milliseconds) / 1000), policies=[shed()] if policies == "shed" else [])
    uvicorn.Server(uvicorn.Config(governed, log_level="error", lifespan="off", timeout_keep_alive=60)).run(sockets=[listener])


if __name__ == "__main__":
    main()
