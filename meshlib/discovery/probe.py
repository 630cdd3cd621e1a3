"""Is anybody listening there? Brings back endpoints that were taken out, and settles suspects."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias

from meshlib.balance.fleet import Endpoint, Fleet
from meshlib.model import Instance

Reach: TypeAlias = Callable[[Instance], Coroutine[Any, Any, bool]]

CONCURRENT = 32
"""Probes under way at once by one :func:`tcp`."""


def tcp(*, timeout: float) -> Reach:
    """A probe that connects within ``timeout`` seconds and hangs up. It belongs to the event loop that first uses it."""
    permits = asyncio.Semaphore(CONCURRENT)

    async def reach(instance: Instance) -> bool:
        async with permits:
            try:
                async with asyncio.timeout(timeout):
                    _, writer = await asyncio.open_connection(instance.host, instance.port)
            except (OSError, TimeoutError, UnicodeError):  # the last for names that cannot be looked up
                return False
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return True

    return reach


def delay(failures: int, *, uniform: Callable[[], float] = random.random) -> float:
    """Seconds before the next probe: few at first (a connection may break for no fault of the instance), doubling up to 5 s,
    jittered downwards so that consumers do not knock in step. Never none: the socket of a process that is being killed
    accepts for some milliseconds longer than its connections live."""
    return min(5.0, 0.1 * 2.0 ** min(max(failures - 1, 0), 10)) * (0.5 + uniform() / 2)


async def restore(fleet: Fleet, endpoint: Endpoint, reach: Reach) -> None:
    """Probe an ejected ``endpoint`` until it answers, and bring it back; stop when it is no longer listed or has
    been brought back otherwise."""
    failures = endpoint.failures
    while endpoint.ejected and not endpoint.retired:
        await asyncio.sleep(delay(failures))
        if await reach(endpoint.instance):
            fleet.restore(endpoint)
            return
        failures += 1
