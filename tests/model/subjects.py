"""What is checked: each backend, with providers that use it and faults that befall it.

A subject's public coroutines that are named in :attr:`Subject.actions` are the steps of a history. ``who`` and ``how`` are
numbers that a history is made of; what they choose is decided here.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from meshlib.backends.base import Listing, Registry
from meshlib.errors import MeshError
from meshlib.model import Instance, ServiceUrl, Status
from tests.model.ledger import Ledger

SERVICES = (ServiceUrl("orders"), ServiceUrl("orders", "a.b"))
NEIGHBOURS = (
    ServiceUrl("orders"),
    ServiceUrl("orders", "a.b"),
    ServiceUrl("orders-2"),
    ServiceUrl("a-b-orders"),
    ServiceUrl("order"),
)
"""Services whose names lie close to those that are watched, in one backend or another."""
NAMES = ("p0", "p1", "p2", "p3")
TTLS = (4.0, 30.0, 30.0)
STATUSES = (Status.UP, Status.DRAINING, Status.MAINTENANCE)
LOUD = 1.0
"""Seconds within which a view knows that the registry refuses to talk."""

PROVIDING: Mapping[str, int] = {"start": 8, "leave": 3, "crash": 2, "say": 3, "beat": 3, "unlist": 1, "stranger": 2}


class Subject:
    """``registry`` is what the view watches; providers register through ``providing``, of which there may be several.

    ``blind`` are the seconds that a client may need to notice a connection that died without a word, and to ask again.
    """

    name = ""
    faults: Mapping[str, int] = {}
    blind = 3.0
    names: tuple[str, ...] = NAMES
    registry: Registry
    providing: list[Registry]

    def __init__(self, service: ServiceUrl, clock: Any, rng: random.Random) -> None:
        self.service, self.clock, self.rng = service, clock, rng
        self.ledger = Ledger(service, clock)
        self.running: dict[str, Instance] = {}
        self.unlisted: set[str] = set()
        self.starts = 0
        self.watches: list[float] = []
        """When a watch was opened."""
        self.watching = False

    @property
    def actions(self) -> Mapping[str, int]:
        """What a history may consist of, and how often each comes, relative to the others."""
        return {**PROVIDING, **self.faults}

    async def open(self) -> None:
        """Called on the loop, once."""

    async def close(self) -> None:
        """The inverse."""

    async def do(self, action: str, who: int, how: int) -> None:
        """One step."""
        await getattr(self, action)(who, how)

    # -- providers

    async def start(self, who: int, how: int) -> None:
        """A process starts, perhaps in the place of one that runs."""
        self.starts += 1
        name = self.names[who % len(self.names)]
        instance = Instance.parse({
            "service": self.service.service, "namespace": self.service.namespace, "id": name, "host": f"10.0.0.{1 + how % 3}",
            "port": 8000 + who % len(self.names), "generation": str(self.starts), "zone": ("", "z1")[how % 2],
            "weight": 1 + how % 3, "labels": {"n": str(self.starts)},
        })  # fmt: skip
        await self._run(instance, how)

    async def _run(self, instance: Instance, how: int) -> None:
        self.running[instance.id] = instance
        self.unlisted.discard(instance.id)
        await self.register(instance, how)

    async def say(self, who: int, how: int) -> None:
        """A process says that it is up, draining or in maintenance."""
        known = self.running.get(self.names[who % len(self.names)])
        if known:
            await self._run(replace(known, status=STATUSES[how % len(STATUSES)]), how)

    async def leave(self, who: int, how: int) -> None:
        """A process deregisters, and stops whether it could or not."""
        known = self.running.get(self.names[who % len(self.names)])
        if known:
            await self.deregister(known, how)
            del self.running[known.id]

    async def crash(self, who: int, how: int) -> None:
        """A process ends without a word."""
        self.running.pop(self.names[who % len(self.names)], None)

    async def unlist(self, who: int, how: int) -> None:
        """Somebody removes the entry of a process that goes on running, and wishes it to stay away."""
        known = self.running.get(self.names[who % len(self.names)])
        if known:
            self.unlisted.add(known.id)
            await self.deregister(known, how)

    async def beat(self, who: int, how: int) -> None:
        """All processes heartbeat, and register again where they are not listed."""
        for instance in list(self.running.values()):
            if instance.id not in self.unlisted and not await self.heartbeat(instance, how):
                await self.register(instance, how)

    async def stranger(self, who: int, how: int) -> None:
        """A process of another service starts."""
        others = [url for url in NEIGHBOURS if url != self.service]
        url = others[who % len(others)]
        self.starts += 1
        await self.register(
            Instance(
                url.service, f"q{who % len(others)}", "10.9.9.9", 9999, generation=str(self.starts), namespace=url.namespace
            ),
            how,
        )

    async def register(self, instance: Instance, how: int) -> None:
        self.ledger.register(instance)
        await self._tried(self.via(how).register(instance, self.ttl(instance)))

    async def heartbeat(self, instance: Instance, how: int) -> bool:
        return await self._tried(self.via(how).heartbeat(instance, self.ttl(instance))) is not False

    async def deregister(self, instance: Instance, how: int) -> None:
        await self._tried(self.via(how).deregister(instance))

    def via(self, how: int) -> Registry:
        """The registry's client that a provider uses."""
        return self.providing[how % len(self.providing)]

    def ttl(self, instance: Instance) -> float:
        return TTLS[int(instance.generation) % len(TTLS)]

    @staticmethod
    async def _tried(work: Any) -> Any:
        """What it returns, None for what a registry may fail with. Any other error is the history's end."""
        try:
            return await work
        except MeshError:
            return None

    async def reach(self, instance: Instance) -> bool:
        """Whether a probe finds somebody."""
        running = self.running.get(instance.id)
        return running is not None and running.key == instance.key

    # -- the registry

    async def heal(self) -> None:
        """Every fault ends, and every process is listed."""
        await self.mend()
        await self.beat(0, 0)

    async def mend(self) -> None:
        """Every fault of the registry and the network ends."""

    def bound(self, first: bool) -> float:
        """Seconds that a list may be behind; ``first`` for the first one of a process."""
        return 0.0

    def answered(self) -> float:
        """When the registry last answered the view's watch."""
        return self.clock()

    def healed(self) -> None:
        """Called when all is well: a watch that is open now counts as :meth:`contact`."""
        self._healed, self._watching = self.clock(), self.watching

    def contact(self) -> float | None:
        """When the view's watch first had a question with a registry that is well, None before it has."""
        if self._watching:
            return self._healed
        return next((when for when in self.watches if when >= self._healed), None)

    def lost(self) -> float | None:
        """Since when the registry has refused to talk to the view, None while it does talk, or says nothing."""
        return None


class Watched:
    """A registry whose watches are noted."""

    def __init__(self, inner: Registry, subject: Subject) -> None:
        self._inner, self._subject = inner, subject

    async def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        self._subject.watches.append(self._subject.clock())
        self._subject.watching = True
        try:
            async with aclosing(self._inner.watch(service)) as listings:  # type: ignore[type-var]
                async for listing in listings:
                    yield listing
        finally:
            self._subject.watching = False
