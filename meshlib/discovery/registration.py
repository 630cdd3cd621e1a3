"""Our own entry in the registry: level-triggered, so that whatever removed it, the next heartbeat puts it back.

A registration belongs to the process that made it. It never blocks the app and never gives up; the app asks
:meth:`Registration.wait` where it wants to know.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any

from meshlib.backends.base import Registry
from meshlib.discovery.address import advertised, source_address, suspicious
from meshlib.discovery.follow import backoff
from meshlib.errors import MeshError, RegistryError
from meshlib.model import Instance, Status, parse_host
from meshlib.settings import Settings

log = logging.getLogger(__name__)


class Reconciler:
    """Makes the registry list ``desired`` and keeps it so. Runs on the worker's loop; :meth:`wish` may be called there only.

    ``made`` resolves with the instance once the registry has accepted it for the first time. ``desired`` is what was last
    sent to the registry, None before anything was.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Callable[[], Awaitable[Registry]],
        *,
        port: int | None,
        generation: str,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._registry, self._uniform = settings, registry, uniform
        self._port, self._generation = port, generation
        self._wish = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.status = Status.UP
        self.desired: Instance | None = None
        self.made: Future[Instance] = Future()
        self.problem = ""
        self._told: type[MeshError] | None = None

    def start(self) -> None:
        """Begin to reconcile."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._reconcile()
                failures = 0
            except MeshError as problem:
                failures += 1
                self._failed(problem)
            except Exception as problem:  # noqa: BLE001 - a bug of a backend must not end the registration
                failures += 1
                self._failed(RegistryError(f"internal error: {problem!r}"), problem)
            await self._pause(backoff(failures, self._uniform()) if failures else self._settings.heartbeat)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wish.wait()

    async def _reconcile(self) -> None:
        self._wish.clear()
        registry = await self._registry()
        instance = await self._instance(registry)
        if self.desired != instance or not await registry.heartbeat(instance, self._settings.ttl):
            self.desired = instance  # before the request: whoever stops us in the middle of it deregisters
            await registry.register(instance, self._settings.ttl)
            log.info("registered %s at %s", instance.url, instance.netloc)
        if self._told:
            log.warning("%s is registered now", instance.url)
        self.problem, self._told = "", None
        if not self.made.done():
            self.made.set_result(instance)

    async def _instance(self, registry: Registry) -> Instance:
        if self.desired is not None:
            return replace(self.desired, status=self.status)
        try:
            source = await asyncio.to_thread(source_address, registry.routes)
        except OSError as problem:
            raise RegistryError(f"no route to the registry, so no address to advertise: {problem}") from problem
        host, port = advertised(self._settings, self._port, source)
        if warning := suspicious(host, registry.routes):
            log.warning("%s", warning)
        return describe(self._settings, parse_host(host), port, generation=self._generation, status=self.status)

    def _failed(self, problem: MeshError, bug: Exception | None = None) -> None:
        if self._told is not type(problem):  # not its text: that may name another server every time
            self._told = type(problem)
            log.warning("%s is not registered, trying again: %s", self._settings.service, problem, exc_info=bug)
        self.problem = str(problem)

    def wish(self, status: Status) -> None:
        """Have it listed with ``status`` from now on."""
        self.status = status
        self._wish.set()

    async def stop(self) -> None:
        """Stop reconciling, then remove the entry; a registry that does not answer is not waited for beyond its time-out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.desired is None:
            return
        try:
            async with asyncio.timeout(self._settings.registry_timeout):
                await (await self._registry()).deregister(self.desired)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it must not keep a process from stopping
            log.warning("%s could not be deregistered, it expires within %g s: %s", self.desired.url, self._settings.ttl,
                        str(problem) or "time-out")  # fmt: skip


def describe(settings: Settings, host: str, port: int, *, generation: str, status: Status = Status.UP) -> Instance:
    """The instance that ``settings`` describe, served at ``host`` and ``port``. Its default id is the same after a restart,
    so that a restart replaces its predecessor."""
    safe = host.replace(":", "-")
    fields: dict[str, Any] = {
        "service": settings.service,
        "id": settings.instance_id or f"{settings.service}-{safe}-{port}",
        "host": host,
        "port": port,
        "status": status.value,
        "generation": generation,
    }
    for name in ("scheme", "version", "zone", "weight", "labels", "namespace"):
        fields[name] = getattr(settings, name)
    return Instance.parse(fields)
