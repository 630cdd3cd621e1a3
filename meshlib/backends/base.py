"""The two protocols that carry everything. All methods run on the control plane's event loop.

Every method that talks to a server raises :class:`~meshlib.errors.RegistryUnavailable` when there is no usable answer,
:class:`~meshlib.errors.RegistryDenied` when credentials are refused, and no engine's own exception. Nothing here waits for
ever: each request has a deadline, and so has each read of a watch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from meshlib.model import Instance, ServiceUrl


@dataclass(frozen=True, slots=True)
class Listing:
    """All instances of one service at one moment of the registry: unique and ordered by id.

    ``revision`` is the registry's own, for people to read.
    """

    instances: tuple[Instance, ...]
    revision: str = ""

    @classmethod
    def of(cls, instances: list[Instance], revision: object = "") -> Listing:
        """Order ``instances`` and keep the last of each id."""
        unique = {instance.id: instance for instance in instances}
        return cls(tuple(map(unique.__getitem__, sorted(unique))), str(revision))


class Registry(Protocol):
    """Where instances are listed."""

    routes: tuple[tuple[str, int], ...]
    """Addresses ``(host, port)`` of its servers, for finding the address to advertise; empty when it is on this machine."""

    async def register(self, instance: Instance, ttl: float) -> None:
        """List ``instance`` until ``ttl`` seconds pass without a heartbeat. Registering again replaces."""
        ...

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:
        """Prolong it. False when the registry does not (or no longer) list exactly this: register again."""
        ...

    async def deregister(self, instance: Instance) -> None:
        """Remove it; fine when it is not there."""
        ...

    async def fetch(self, service: ServiceUrl) -> Listing:
        """The instances alive now, stale reads allowed within a bound; empty for an unknown service."""
        ...

    def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        """The listing now, then again whenever it changed, and unchanged at least every :data:`CONFIRM` seconds as proof
        of life. Ends only by raising :class:`~meshlib.errors.RegistryError`; the caller watches again."""
        ...

    async def services(self, namespace: str) -> list[str]:
        """The names of all services of ``namespace``, ordered."""
        ...

    async def close(self) -> None:
        """Release sockets and files."""
        ...


@runtime_checkable
class Maintains(Protocol):
    """A registry that itself can take an instance out, whatever the processes behind it say."""

    async def maintain(self, instance: Instance, on: bool) -> None:
        """Put ``instance`` into maintenance, or end what was ordered so. Raises :class:`~meshlib.errors.RegistryError`, saying
        where else to ask, when it cannot be done from here."""
        ...


@runtime_checkable
class Trial(Protocol):
    """A registry that grants rights."""

    async def try_register(self, service: ServiceUrl) -> None:
        """Raise :class:`~meshlib.errors.RegistryDenied` unless we may register instances of ``service``. Changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A value under a key. ``revision`` is positive and changes with every write of the key."""

    key: str
    value: bytes
    revision: int


class Lock(Protocol):
    """A lock that is held until released or until its holder stops renewing it."""

    fence: int
    """Grows with every acquisition of the same key: give it to what the lock protects, to refuse a holder of old."""

    async def renew(self) -> bool:
        """Prolong it; False when it is lost. Due at least every ttl/2 seconds."""
        ...

    async def release(self) -> None:
        """Give it back; fine when it is lost."""
        ...


class KeyValue(Protocol):
    """Small documents under slash-separated keys (``policies/orders``), without a leading slash."""

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        """All entries whose key starts with ``prefix``, ordered by key."""
        ...

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> None:
        """Write. With ``expected``, only if the key's revision is that (0: only if absent), else
        :class:`~meshlib.errors.CasConflict`."""
        ...

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        """Remove, fine when absent; ``expected`` as in :meth:`put`, and then absence is a conflict."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[tuple[Entry, ...]]:
        """As :meth:`list` now, then again on every change; proof of life and errors as in :meth:`Registry.watch`."""
        ...

    async def lock(self, key: str, *, ttl: float) -> Lock | None:
        """Try once to take the lock ``key`` for ``ttl`` seconds; None while somebody else holds it. A holder that dies
        loses it after ``ttl`` (Consul: 10 s at least, and up to twice that)."""
        ...


CONFIRM = 15.0
"""Seconds within which a healthy watch yields again, changed or not."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Backend:
    """What ``open_backend`` returns; ``kv`` is None where the registry has no key-value store."""

    registry: Registry
    kv: KeyValue | None

    async def close(self) -> None:
        """Close both."""
        await self.registry.close()
