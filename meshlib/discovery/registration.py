"""Our own entry in the registry: level-triggered, so that whatever removed it, the next heartbeat puts it back.

Of all processes that serve one host:port one keeps the entry, the registrar (see :mod:`meshlib.discovery.siblings`). The
others stand by: they look several times in a heartbeat whether it is still there. Two at work at the same time do no harm,
as they list the same; so whoever has a wish has it listed itself, and all help where nothing was confirmed for too long.

A registration belongs to the process that made it. It never blocks the app and never gives up; the app asks
:meth:`Registration.wait` where it wants to know.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from meshlib.backends.base import Registry
from meshlib.discovery.address import advertised, source_address, suspicious
from meshlib.discovery.follow import backoff
from meshlib.discovery.siblings import Alone, Group, Record, Standing, siblings_of
from meshlib.discovery.succession import successor_expected
from meshlib.errors import MeshError, RegistryError, RegistryUnavailable
from meshlib.model import Instance, Status, parse_host
from meshlib.settings import Settings
from meshlib.threads import promise

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOKS = 5
"""Times in a heartbeat that a process that stands by looks for the registrar."""
STUCK = 2
"""Heartbeats without one, after which those who stand by send it themselves; the entry lives for three."""


class Reconciler:
    """Makes the registry list ``desired`` and keeps it so, together with its siblings. Runs on the worker's loop;
    :meth:`wish` may be called there only.

    ``made`` resolves with the instance once the registry has accepted it for the first time, whoever listed it. ``desired``
    is what this process last sent to the registry, None before it did. ``on_status`` is told when a sibling changed the
    status of all.
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
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ours: Instance | None = None
        self._group: Group | None = None
        self._wish: Status | None = None  # not told to the siblings yet
        self._owed = False  # told, but not listed yet
        self.status = Status.UP
        self.on_status: Callable[[Status], object] = lambda _: None
        self.registrar = False
        self.desired: Instance | None = None
        self.made: Future[Instance] = promise()
        self.problem = ""
        self._told: type[MeshError] | None = None

    @property
    def unreachable(self) -> bool:
        """True while the registry does not answer."""
        return self._told is not None and issubclass(self._told, RegistryUnavailable)

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
            await self._pause(backoff(failures, self._uniform()) if failures else self._due())

    def _due(self) -> float:
        return self._settings.heartbeat / (1 if self.registrar else LOOKS)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _reconcile(self) -> None:
        self._woken.clear()
        registry = await self._registry()
        if self._ours is None:
            self._ours = await self._describe(registry)
            self._group = siblings_of(self._settings, self._ours)
        standing = await self._meet()
        instance = standing.record.apply(self._ours)
        if standing.registrar or self._owed or standing.quiet > STUCK * self._settings.heartbeat:
            await self._list(registry, instance)
            await self._confirm(self._ours, instance)
        elif not standing.record.listed:
            return
        if self._told:
            log.warning("%s is registered now", instance.url)
        self.problem, self._told = "", None
        if not self.made.done():
            self.made.set_result(instance)

    async def _list(self, registry: Registry, instance: Instance) -> None:
        if self.desired != instance or not await registry.heartbeat(instance, self._settings.ttl):
            self.desired = instance  # before the request: whoever stops us in the middle of it deregisters
            await registry.register(instance, self._settings.ttl)
            log.info("registered %s at %s", instance.url, instance.netloc)

    async def _confirm(self, ours: Instance, listed: Instance) -> None:
        """Tell the others. What one of them has wished for since we looked, and listed before we did, we have just undone."""
        await self._shared(lambda group: group.confirm())
        assert self._group is not None
        self._owed = self._group.record.apply(ours) != listed
        if self._owed:
            self._woken.set()

    async def _describe(self, registry: Registry) -> Instance:
        try:
            source = await asyncio.to_thread(source_address, registry.routes)
        except OSError as problem:
            raise RegistryUnavailable(f"no route to the registry, so no address to advertise: {problem}") from problem
        host, port = advertised(self._settings, self._port, source)
        if warning := suspicious(host, registry.routes):
            log.warning("%s", warning)
        return describe(self._settings, parse_host(host), port, generation=self._generation)

    # -- siblings

    async def _meet(self) -> Standing:
        """Tell the others our wish, hear theirs."""
        standing = await self._shared(lambda group: group.look())
        if (wish := self._wish) is not None:
            self._wish, self._owed = None, True
            await self._shared(lambda group: group.wish(wish))
            standing = await self._shared(lambda group: group.look())
        if self._wish is None and standing.record.status is not self.status:
            self.status = standing.record.status
            self.on_status(self.status)
        if standing.registrar and not self.registrar:
            log.debug("process %d keeps the entry of %s", os.getpid(), self._settings.service)
        self.registrar = standing.registrar
        return standing

    async def _shared(self, work: Callable[[Group], T]) -> T:
        """``work`` with the others, or, where they cannot be found, without."""
        assert self._group is not None
        try:
            return await asyncio.to_thread(work, self._group)
        except (OSError, ValueError) as problem:
            log.warning("%s: processes that serve the same port cannot see each other, so each registers for itself, and one "
                        "that leaves takes the entry of all with it until the next heartbeat: %s",
                        self._settings.service, problem)  # fmt: skip
            lost, self._group = self._group, Alone(self._group.record)  # first: who is stopped meanwhile still has an entry
            await asyncio.to_thread(lost.close)
            return work(self._group)

    def _failed(self, problem: MeshError, bug: Exception | None = None) -> None:
        if self._told is not type(problem):  # not its text: that may name another server every time
            self._told = type(problem)
            log.warning("%s is not registered, trying again: %s", self._settings.service, problem, exc_info=bug)
        self.problem = str(problem)

    def wish(self, status: Status) -> None:
        """Have all siblings listed with ``status`` from now on."""
        self.status = self._wish = status
        self._woken.set()

    async def stop(self) -> bool:
        """Stop reconciling; the last of all siblings removes the entry, a registry that does not answer is not waited for
        beyond its time-out. True when it did, for consumers to see; False when the entry stays, or there is none."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._group is None:
            return False
        try:
            last = await self._shared(lambda group: group.leave())
            return last and await self._remove(self._group.record)
        finally:
            await asyncio.to_thread(self._group.close)

    async def _remove(self, record: Record) -> bool:
        if self._ours is None or not (self.desired or record.listed):
            return False
        instance = self.desired or record.apply(self._ours)
        if successor_expected(self._port or self._settings.port):
            log.info("%s stays listed for the process that takes our place", instance.url)
            return False
        try:
            async with asyncio.timeout(self._settings.registry_timeout):
                await (await self._registry()).deregister(instance)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it must not keep a process from stopping
            log.warning("%s could not be deregistered, it expires within %g s: %s", instance.url, self._settings.ttl,
                        str(problem) or "time-out")  # fmt: skip
        return True


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
