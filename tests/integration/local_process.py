"""A process that shares the local registry:

    python -m tests.integration.local_process --without=[transactions] MODE PATH [ARGUMENTS]

Each mode prints a line once it stands where the test wants it. ``--without`` takes a defence away, for the negative controls.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from meshlib.backends import Backend, local_file, open_backend
from meshlib.errors import RegistryUnavailable
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings

TTL = 300.0
"""Nothing expires in a test."""


def instance(name: str) -> Instance:
    return Instance("orders", name, "10.0.0.5", 8080)


def say(*words: object) -> None:
    print(*words, flush=True)


async def register(backend: Backend, name: str) -> None:
    await backend.registry.register(instance(name), TTL)
    say("registered", time.monotonic())


async def stay(backend: Backend, name: str) -> None:
    """Register, then keep the file open and do nothing more."""
    await register(backend, name)
    await asyncio.sleep(60)


async def beat(backend: Backend, prefix: str, count: str, rounds: str) -> None:
    """Register ``count`` instances, then heartbeat each ``rounds`` times; print how many heartbeats were lost."""
    mine = [instance(f"{prefix}-{number}") for number in range(int(count))]
    await asyncio.gather(*(backend.registry.register(one, TTL) for one in mine))
    lost = 0
    for _ in range(int(rounds)):
        lost += (await asyncio.gather(*(backend.registry.heartbeat(one, TTL) for one in mine))).count(False)
    say("lost", lost)


async def keep(backend: Backend, name: str) -> None:
    """Stay registered, as a process does that heartbeats; ends only by a signal."""
    while True:
        with suppress(RegistryUnavailable):  # the file was removed in the middle of a write: try again
            if not await backend.registry.heartbeat(instance(name), TTL):
                await backend.registry.register(instance(name), TTL)
                say("registered")
        await asyncio.sleep(0.1)


async def hold(backend: Backend) -> None:
    """Stop in the middle of a write: rows are changed, the write lock is held, nothing is committed."""

    def change(writer: sqlite3.Connection, _: float) -> None:
        writer.execute("DELETE FROM instances")
        say("holding")
        time.sleep(60)

    await backend.registry.database.write(change)  # type: ignore[attr-defined]


async def trespass(backend: Backend) -> None:
    """Read and write with a backend that is the parent's, and say what came of it."""
    try:
        say("child reads", [one.id for one in (await backend.registry.fetch(ServiceUrl("orders"))).instances])
    except RegistryUnavailable as problem:
        say("child reads", problem)
    try:
        async with asyncio.timeout(20):
            say("child writes", await backend.registry.heartbeat(instance("parent"), TTL))
    except (RegistryUnavailable, TimeoutError) as problem:
        say("child writes", type(problem).__name__, problem)


class Autocommit(local_file.Connection):
    """A connection whose every statement counts at once."""

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        return super().execute("SELECT 1" if statement == "BEGIN IMMEDIATE" else statement, *arguments)


def switch_off(defence: str) -> None:
    """Take one defence of the library away."""
    match defence:
        case "transactions":
            local_file.Connection = Autocommit  # type: ignore[misc]


def fork(path: str) -> None:
    """Fork while a loop in another thread, as the control plane's, has the backend open; the child tries to use it, drops
    it, and ends as Python does."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    backend = open_backend(Settings(registry=f"local://{path}"))
    asyncio.run_coroutine_threadsafe(backend.registry.register(instance("parent"), TTL), loop).result(30)
    child = os.fork()
    if child == 0:
        asyncio.run(trespass(backend))
        del backend
        gc.collect()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    still = asyncio.run_coroutine_threadsafe(backend.registry.heartbeat(instance("parent"), TTL), loop).result(30)
    asyncio.run_coroutine_threadsafe(backend.close(), loop).result(30)
    say("parent:", still, "child:", os.waitstatus_to_exitcode(status))


async def main(mode: str, path: str, *arguments: str) -> None:
    backend = open_backend(Settings(registry=f"local://{path}"))
    backend.registry.database.timeout = 30.0  # type: ignore[attr-defined]  # eight at once may be in each other's way
    modes = {"register": register, "stay": stay, "beat": beat, "keep": keep, "hold": hold}
    await modes[mode](backend, *arguments)
    await backend.close()


if __name__ == "__main__":
    switch_off(sys.argv[1].removeprefix("--without="))
    match sys.argv[2:]:
        case ["fork", path]:
            fork(path)
        case arguments:
            asyncio.run(main(*arguments))
