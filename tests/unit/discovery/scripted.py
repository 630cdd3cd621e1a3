"""A registry that follows a script, and what followers and reconcilers run in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from meshlib.backends import Listing
from meshlib.balance.fleet import Fleet
from meshlib.discovery.follow import Follower, Surroundings
from meshlib.discovery.probe import Probes
from meshlib.discovery.view import View
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.settings import Settings
from meshlib.testing import FakeClock
from tests.unit.discovery.snapshots import ORDERS

WALL = 1_700_000_000.0


class Scripted:
    """Each watch takes the next item of ``watches``: listings to yield, numbers of seconds to pause, an exception to raise.
    After the last item of a watch it stays quiet; when no watch is left, all stay quiet. It notes how it is used."""

    routes: tuple[tuple[str, int], ...] = ()

    def __init__(self, *watches: list[Any]) -> None:
        self.watches = list(watches)
        self.opened = self.closed = 0
        self.at: list[float] = []
        self.log: list[str] = []
        self.behave: Mapping[str, Callable[[Instance], Awaitable[Any]]] = {}

    async def watch(self, _service: ServiceUrl) -> AsyncIterator[Listing]:
        self.opened += 1
        self.at.append(asyncio.get_running_loop().time())
        try:
            for item in self.watches.pop(0) if self.watches else []:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                elif item == "end":
                    return
                else:
                    yield item
            await asyncio.Event().wait()
        finally:
            self.closed += 1

    async def register(self, instance: Instance, ttl: float) -> None:
        await self._do("register", instance)

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:
        return bool(await self._do("heartbeat", instance, True))

    async def deregister(self, instance: Instance) -> None:
        await self._do("deregister", instance)

    async def _do(self, what: str, instance: Instance, default: Any = None) -> Any:
        self.log.append(f"{what} {instance.status.value}")
        self.at.append(asyncio.get_running_loop().time())
        return await self.behave[what](instance) if what in self.behave else default

    async def fetch(self, service: ServiceUrl) -> Listing:
        raise NotImplementedError

    async def services(self, namespace: str) -> list[str]:
        raise NotImplementedError

    async def close(self) -> None:
        self.log.append("close")


class Disk:
    """A snapshot store in memory. ``trouble`` is raised by whatever is done with it."""

    def __init__(self, clock: FakeClock, kept: Snapshot | None = None) -> None:
        self.clock = clock
        self.kept = kept and replace(kept, source="disk")
        self.trouble: Exception | None = None
        self.loads = 0
        self.saved: list[tuple[float, Snapshot, dict[str, float]]] = []

    def load(self, _service: ServiceUrl) -> Snapshot | None:
        self.loads += 1
        if self.trouble:
            raise self.trouble
        return self.kept

    def save(self, snapshot: Snapshot, *, tombstones: Mapping[str, float]) -> None:
        self.saved.append((self.clock() - 1000.0, snapshot, dict(tombstones)))
        if self.trouble:
            raise self.trouble


class World:
    """A clock, a registry, a disk, probes, and a view that is followed in them."""

    def __init__(self, registry: Any, *, disk: Snapshot | None = None, service: ServiceUrl = ORDERS, **settings: Any) -> None:
        self.clock = FakeClock()
        self.registry = registry
        self.disk = Disk(self.clock, disk)
        self.settings = Settings(registry="memory://", **settings)
        self.dead: set[str] = set()
        self.probed: list[tuple[float, str]] = []
        self.followers: list[asyncio.Task[None]] = []
        self.view = View(
            service, Fleet(service), self.follow, timeout=5.0, clock=self.clock, wall=self.wall
        )  # fmt: skip
        self.around = Surroundings(
            self.settings, self._registry, Probes(self.reach, self.reach), self.disk, self.clock, self.wall, lambda: 1.0  # type: ignore[arg-type]
        )  # fmt: skip

    async def _registry(self) -> Any:
        if isinstance(self.registry, BaseException):
            raise self.registry
        return self.registry

    def wall(self) -> float:
        return WALL + self.clock() - 1000.0

    async def reach(self, instance: Instance) -> bool:
        self.probed.append((self.elapsed, instance.id))
        return instance.id not in self.dead

    @property
    def elapsed(self) -> float:
        return self.clock() - 1000.0

    def follow(self, view: View) -> None:
        self.followers.append(asyncio.create_task(Follower(view, self.around, view.begin()).run()))

    @property
    def shown(self) -> str | None:
        """Ids in order, suspects with a question mark; None before anything is known."""
        snapshot = self.view.snapshot
        if snapshot is None:
            return None
        return " ".join(one.id + "?" * (one.id in snapshot.suspects) for one in snapshot.instances)

    async def stop(self) -> None:
        for task in self.followers:
            task.cancel()
        await asyncio.gather(*self.followers, return_exceptions=True)
