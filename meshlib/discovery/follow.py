"""Following: one :class:`Follower` per view in use, on the control plane's loop.

It watches, starts from the disk when the registry does not answer, settles suspects and saves. The registry's protocol is
the backend's business; trying again, and when, is decided here, once for all backends.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

from meshlib.backends.base import Listing, Registry
from meshlib.discovery.merge import Known, drop, merge
from meshlib.discovery.probe import Probes, ping
from meshlib.discovery.store import SnapshotStore
from meshlib.discovery.view import View, differ
from meshlib.errors import MeshError, RegistryError, RegistryUnavailable, StoreError
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings
from meshlib.text import nearest

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0
"""Seconds after which an unchanged snapshot is written again, for its age to be true."""
SAVE_GAP = 1.0
"""Seconds between two writes, however often it changes: each waits for the disk."""
SUSPECTS_EVERY = 5.0
"""Seconds between two probes of a suspect that answers."""
LIKE = 0.5
"""Most seconds in which the name of a service that nobody registered is compared with those there are."""
BACKOFF_CAP = 0.9
"""Most seconds between two attempts to reach the registry: what heals is to be seen within a second."""


def backoff(failures: int, uniform: float) -> float:
    """Seconds before attempt number ``failures`` + 1: full jitter, the first one included, against reconnecting herds
    (nats.go#563). ``uniform`` is a random number from 0 to 1."""
    return min(BACKOFF_CAP, 0.1 * 2.0 ** min(failures, 10)) * uniform


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Surroundings:
    """What a follower works with. ``clock`` is monotonic, ``wall`` seconds since the epoch."""

    settings: Settings
    registry: Callable[[], Awaitable[Registry]]
    probes: Probes
    store: SnapshotStore | None = None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    uniform: Callable[[], float] = random.random
    beside: Callable[[ServiceUrl], Awaitable[None]] | None = None
    """What else is followed as long as the service is, until it is cancelled: its policy documents."""


class Follower:
    """Follows one view, in an ``epoch`` of it, until nobody has read it for ``MESH_WATCH_IDLE`` seconds."""

    def __init__(self, view: View, around: Surroundings, epoch: int) -> None:
        self.view, self.around, self.epoch = view, around, epoch
        self._changed = asyncio.Event()
        self._suspects = asyncio.Event()
        self._reading = asyncio.Lock()
        self._looked_at_disk = False
        self._told: type[MeshError] | None = None

    async def run(self) -> None:
        """Runs until the view is idle, then marks it as not followed."""
        view = self.view
        sides = [asyncio.create_task(self._kept(work)) for work in self._sides()]
        try:
            await self._follow()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            view.end(self.epoch)
        if self._idle():
            view.fleet.rest()
        else:  # a call came just before: it saw a view that was still followed
            view.attend()

    def _sides(self) -> list[Callable[[], Awaitable[None]]]:
        around = self.around
        sides: list[Callable[[], Awaitable[None]]] = [self._cold_start, self._settle_suspects, self._save]
        if around.settings.ping:
            sides.append(lambda: ping(self.view.fleet, around.probes.reach, around.settings.ping, uniform=around.uniform))
        if (beside := around.beside) is not None:
            sides.append(lambda: beside(self.view.service))
        return sides

    async def _kept(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except Exception:  # a bug in one of them must not end the others, nor itself for good
                log.exception("%s: %s failed", self.view.service, getattr(work, "__name__", work))
                await asyncio.sleep(SUSPECTS_EVERY)

    def _idle(self) -> bool:
        return self.around.clock() - self.view.last_read > self.around.settings.watch_idle

    async def _follow(self) -> None:
        failures = 0
        while not self._idle():
            start = self.around.clock()
            try:
                await self._watch()
            except MeshError as problem:
                self._lost(problem)
            except Exception as problem:  # noqa: BLE001 - a bug of a backend must not stop discovery for good
                self._lost(RegistryError(f"internal error: {problem!r}"), problem)
            else:
                return
            # A watch that breaks as soon as it has answered is no recovery.
            failures = 1 if self.around.clock() - start > BACKOFF_CAP else failures + 1
            await self._from_disk()
            await asyncio.sleep(backoff(failures, self.around.uniform()))

    async def _watch(self) -> None:
        """One watch. Returns when the view is idle."""
        registry = await self.around.registry()
        async with aclosing(registry.watch(self.view.service)) as listings:  # type: ignore[type-var]
            async for listing in listings:
                if not listing.instances:  # in good faith, it may be, after a loss of state: see merge
                    await self._from_disk()
                    await self._look_for_like(registry)
                self._accept(listing)
                if self._idle():
                    return
        raise RegistryUnavailable("the watch ended")

    async def _look_for_like(self, registry: Registry) -> None:
        """For a service that nobody ever knew: the one whose name was probably meant. It is looked for once."""
        view = self.view
        if view.known is not None or view.like is not None:
            return
        view.like = ""
        try:
            async with asyncio.timeout(LIKE):
                names = await registry.services(view.service.namespace)
        except Exception as problem:  # noqa: BLE001 - a mere hint must not keep the list from anybody
            log.debug("%s: no similar names: %r", view.service, problem)
            return
        view.like = nearest(view.service.service, {*names} - {view.service.service}, alike=0.75)

    def _accept(self, listing: Listing) -> None:
        view, before = self.view, self.view.known
        hard_age = self.around.settings.snapshot_max_age
        known = merge(before, listing, view.service, now=self.around.wall(), clock=self.around.clock(), hard_age=hard_age)
        fresh = known.snapshot.suspects - (before.snapshot.suspects if before else frozenset())
        if fresh:
            log.warning("%s: suddenly unlisted: %s; probing before believing it", view.service, ", ".join(sorted(fresh)))
        if self._told:
            log.warning("%s: the registry answers again", view.service)
            self._told = None
        view.live, view.problem = True, ""
        self._publish(known)

    def _publish(self, known: Known) -> None:
        before = self.view.known
        self.view.publish(known)
        if before is None or before.snapshot.source != "registry" or before.gone != known.gone or differ(before, known):
            self._changed.set()
        if known.snapshot.suspects:
            self._suspects.set()

    def _lost(self, problem: MeshError, bug: Exception | None = None) -> None:
        if self._told is not type(problem):  # not its text: that may name another server every time
            self._told = type(problem)
            going = "going on with what is known" if self.view.known else "nothing is known yet"
            log.warning("%s: the registry is lost, %s, trying again: %s%s", self.view.service, going, problem, self._hint(),
                        exc_info=bug)  # fmt: skip
        self.view.live, self.view.problem = False, str(problem)

    def _hint(self) -> str:
        """What to look at, for a registry that never answered."""
        settings = self.around.settings
        return "" if self.view.known else f"; is MESH_REGISTRY={settings.registry} (from {settings.source('registry')}) right?"

    async def _cold_start(self) -> None:
        """Give the registry its moment, then let callers go on with what was known, the disk snapshot, or with nothing."""
        settings = self.around.settings
        await asyncio.sleep(settings.cold_start_grace)
        if self.view.known is None:
            await self._from_disk()
        if self.view.known is not None:
            self.view.settle()
        await asyncio.sleep(max(0.0, settings.cold_start_timeout - settings.cold_start_grace))
        self.view.settle()

    async def _from_disk(self) -> None:
        async with self._reading:  # who comes with an empty list while it is read must not be quicker: see merge
            if self.view.known is None and self.around.store is not None and not self._looked_at_disk:
                self._looked_at_disk = True
                await self._load(self.around.store)

    async def _load(self, store: SnapshotStore) -> None:
        view = self.view
        try:
            # A disk that hangs must not keep us from the registry.
            async with asyncio.timeout(self.around.settings.cold_start_timeout):
                snapshot = await asyncio.to_thread(store.load, view.service)
        except Exception as problem:
            log.warning("%s: no disk snapshot: %s", view.service, problem, exc_info=not isinstance(problem, StoreError))
            return
        if snapshot is not None and view.known is None:
            age = snapshot.age(self.around.wall())
            log.warning("%s: starting from the disk snapshot, %.0f s old", view.service, age)
            self._publish(Known(snapshot, dict.fromkeys(snapshot.suspects, self.around.clock() - age)))

    async def _settle_suspects(self) -> None:
        while True:
            await self._suspects.wait()
            while self.view.known is not None and (suspects := self.view.known.snapshot.suspects):
                instances = [one for one in self.view.known.snapshot.instances if one.id in suspects]
                alive = await asyncio.gather(*map(self.around.probes.reach, instances))
                for instance in (one for one, answers in zip(instances, alive, strict=True) if not answers):
                    self._drop(instance)
                await asyncio.sleep(SUSPECTS_EVERY * (0.5 + self.around.uniform() / 2))
            self._suspects.clear()

    def _drop(self, dead: Instance) -> None:
        known = self.view.known
        # It may have been listed again meanwhile, or be a suspect again as another generation.
        if known is not None and dead.id in known.snapshot.suspects and dead in known.snapshot.instances:
            log.warning("%s: %s is gone: unlisted and unreachable", self.view.service, dead.id)
            self._publish(drop(known, dead.id, now=self.around.wall()))

    async def _save(self) -> None:
        store, saved, told = self.around.store, None, False
        while store is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(SAVE_EVERY):
                    await self._changed.wait()
            self._changed.clear()
            known = self.view.known
            if known is None or known is saved or known.snapshot.source != "registry":
                continue
            saved = known
            try:
                await asyncio.to_thread(store.save, known.snapshot, tombstones=known.gone)
                told = False
            except Exception as problem:  # as above; said once
                if not told:
                    log.warning("%s: the disk snapshot cannot be written: %s", self.view.service, problem,
                                exc_info=not isinstance(problem, StoreError))  # fmt: skip
                told = True
            await asyncio.sleep(SAVE_GAP)
