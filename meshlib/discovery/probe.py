"""Is anybody there? Brings back endpoints that were taken out, settles suspects, and on request pings the healthy."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx2

from meshlib.balance.endpoint import Endpoint, Reason
from meshlib.balance.fleet import Fleet
from meshlib.model import Instance

Reach: TypeAlias = Callable[[Instance], Coroutine[Any, Any, bool]]

CONCURRENT = 32
"""Probes under way at once by one :func:`tcp` or :func:`http`."""
PER_SECOND = 100.0
"""Most pings per second and service, however many instances it has."""


@dataclass(frozen=True, slots=True)
class Probes:
    """``reach`` asks whether an instance is there, ``answers`` whether the process behind its socket does anything: that of
    a stopped one still accepts connections. They belong to the event loop that first uses them."""

    reach: Reach
    answers: Reach


def probes(kind: str, make: Callable[[Instance], httpx2.AsyncBaseTransport], *, timeout: float) -> Probes:
    """Probes of ``kind`` ``"tcp"``, or of a path that is requested; ``make`` opens the transport to an instance."""
    if kind == "tcp":
        return Probes(tcp(timeout=timeout), http(make, "*", timeout=timeout))
    asking = http(make, kind, timeout=timeout)
    return Probes(asking, asking)


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


def http(make: Callable[[Instance], httpx2.AsyncBaseTransport], path: str, *, timeout: float) -> Reach:
    """A probe that requests ``path`` and wants an answer below 500 within ``timeout`` seconds. ``"*"`` asks for nothing but
    an answer, with ``OPTIONS *``: made for that (RFC 9110, section 9.3.7), and no application does any work for it."""
    permits = asyncio.Semaphore(CONCURRENT)
    method, worst = ("OPTIONS", 999) if path == "*" else ("GET", 499)
    limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout)

    async def reach(instance: Instance) -> bool:
        url = httpx2.URL(scheme=instance.scheme, host=instance.host, port=instance.port, path="/")
        request = httpx2.Request(method, url, extensions={"target": path.encode("ascii"), "timeout": limits})
        async with permits:
            try:
                async with asyncio.timeout(timeout), make(instance) as transport:
                    response = await transport.handle_async_request(request)
                    await response.aclose()
            except (httpx2.HTTPError, OSError, TimeoutError):
                return False
            return response.status_code <= worst

    return reach


def delay(failures: int, *, uniform: Callable[[], float] = random.random) -> float:
    """Seconds before the next probe: few at first (a connection may break for no fault of the instance), doubling up to 5 s,
    jittered downwards so that consumers do not knock in step. Never none: the socket of a process that is being killed
    accepts for some milliseconds longer than its connections live."""
    return min(5.0, 0.1 * 2.0 ** min(max(failures - 1, 0), 10)) * (0.5 + uniform() / 2)


async def restore(fleet: Fleet, endpoint: Endpoint, probes: Probes) -> None:
    """Bring an ejected ``endpoint`` back: an outlier when its time is up, the others when a probe says so; stop when it is no
    longer listed or has been brought back otherwise."""
    ejection, failures = endpoint.ejected, endpoint.failures
    if ejection is None:
        return
    outlier, ask = ejection.reason is Reason.OUTLIER, probes.answers if ejection.reason is Reason.HUNG else probes.reach
    while endpoint.ejected is ejection and not endpoint.retired:
        await asyncio.sleep(ejection.seconds if outlier else delay(failures))
        if outlier or await ask(endpoint.instance):
            fleet.restore(endpoint, ejection)
            return
        failures += 1


async def ping(fleet: Fleet, reach: Reach, every: float, *, uniform: Callable[[], float] = random.random) -> None:
    """Probe each healthy endpoint of ``fleet`` every ``every`` seconds or as often as :data:`PER_SECOND` allows, one after the
    other with gaps, and take out those that do not answer. For ever."""

    async def check(endpoint: Endpoint) -> None:
        if not await reach(endpoint.instance):
            fleet.eject(endpoint)

    while True:
        endpoints = fleet.tiers.prime
        gap = max(every / max(1, len(endpoints)), 1 / PER_SECOND)
        async with asyncio.TaskGroup() as checks:
            for endpoint in endpoints:
                await asyncio.sleep(gap * (0.5 + uniform()))
                checks.create_task(check(endpoint))
        if not endpoints:
            await asyncio.sleep(gap)
