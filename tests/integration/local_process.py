"""A process that shares the local registry: ``python -m tests.integration.local_process MODE PATH [ARGUMENTS]``.

Each mode prints a line once it stands where the test wants it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import sys
import threading
import time

from meshlib.backends import Backend, open_backend
from meshlib.errors import RegistryUnavailable
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings


def instance(name: str) -> Instance:
    return Instance("orders", name, "10.0.0.5", 8080)


def say(*words: object) -> None:
    print(*words, flush=True)


async def register(backend: Backend, name: str) -> None:
    await backend.registry.register(instance(name), 30)
    say("registered", time.monotonic())


async def beat(backend: Backend, prefix: str, count: str, rounds: str) -> None:
    """Register ``count`` instances, then heartbeat each ``rounds`` times; print how many heartbeats were lost."""
    mine = [instance(f"{prefix}-{number}") for number in range(int(count))]
    await asyncio.gather(*(backend.registry.register(one, 30) for one in mine))
    lost = 0
    for _ in range(int(rounds)):
        lost += (await asyncio.gather(*(backend.registry.heartbeat(one, 30) for one in mine))).count(False)
    say("lost", lost)


async def keep(backend: Backend, name: str) -> None:
    """Stay registered, as a process does that heartbeats; ends only by a signal."""
    while True:
        if not await backend.registry.heartbeat(instance(name), 30):
            await backend.registry.register(instance(name), 30)
            say("registered")
        await asyncio.sleep(0.1)


async def hold(backend: Backend) -> None:
    """Stop in the middle of a write: rows are changed, the write lock is held, nothing is committed."""

    def change(writer: sqlite3.Connection, _: float) -> None:
        writer.execute("DELETE FROM instances")
        say("holding")
        time.sleep(60)

    await backend.registry.database.write(change)  # type: ignore[attr-defined]


def fork(path: str) -> None:
    """Fork while a loop in another thread, as the control plane's, has the backend open; the child tries to use it, drops
    it, and ends as Python does."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    backend = open_backend(Settings(registry=f"local://{path}"))
    asyncio.run_coroutine_threadsafe(backend.registry.register(instance("parent"), 30), loop).result(10)
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(backend.registry.fetch(ServiceUrl("orders")))
        except RegistryUnavailable as problem:
            say("child:", problem)
        del backend
        gc.collect()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    still = asyncio.run_coroutine_threadsafe(backend.registry.heartbeat(instance("parent"), 30), loop).result(10)
    asyncio.run_coroutine_threadsafe(backend.close(), loop).result(10)
    say("parent:", still, "child:", os.waitstatus_to_exitcode(status))


async def main(mode: str, path: str, *arguments: str) -> None:
    backend = open_backend(Settings(registry=f"local://{path}"))
    await {"register": register, "beat": beat, "keep": keep, "hold": hold}[mode](backend, *arguments)
    await backend.close()


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        fork(sys.argv[2])
    else:
        asyncio.run(main(*sys.argv[1:]))
