"""``memory://[name]``: a registry and key-value store inside this process, for tests and single-process apps.

All that open the same name in one process share one store, whatever thread or event loop they run on; a name of its own
isolates a test. Watches wake by themselves, without polling.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from meshlib.backends.base import CONFIRM, Backend, Entry, Listing
from meshlib.errors import CasConflict, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings

EXAMPLE = "memory://"


@dataclass
class Store:
    """The shared state. ``down`` makes every operation fail as a dead server would, for tests of that."""

    clock: Callable[[], float] = time.monotonic
    down: bool = False
    revision: int = 0
    instances: dict[tuple[str, str, str], tuple[Instance, float]] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    locks: dict[str, tuple[int, float]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=set)

    def check(self) -> None:
        """Fail when down; else drop what has expired. The caller holds :attr:`lock`."""
        if self.down:
            raise RegistryUnavailable("the memory registry is down")
        now = self.clock()
        for key in [key for key, (_, expires) in self.instances.items() if expires <= now]:
            del self.instances[key]
            self.touch()

    def touch(self) -> int:
        """Count a change and wake the watchers."""
        self.revision += 1
        self.wake()
        return self.revision

    def wake(self) -> None:
        """Have every watcher look again."""
        for loop, event in list(self.watchers):
            with suppress(RuntimeError):  # its loop is closed: nobody watches there any more
                loop.call_soon_threadsafe(event.set)

    def set_down(self, down: bool) -> None:
        """Kill the registry, or bring it back."""
        self.down = down
        self.wake()

    def until_expiry(self) -> float:
        """Seconds until the next lease ends, at most :data:`CONFIRM`."""
        now = self.clock()
        with self.lock:
            return min([CONFIRM, *(max(0.0, expires - now) for _, expires in self.instances.values())])

    def forked(self) -> None:
        """In a child process: forget the parent's loops, and a lock that one of its threads had."""
        self.lock = threading.RLock()
        self.watchers.clear()

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield now, after every change, when a lease ends and at least every :data:`CONFIRM` seconds."""
        watcher = (asyncio.get_running_loop(), asyncio.Event())
        self.watchers.add(watcher)
        try:
            while True:
                watcher[1].clear()
                yield
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.until_expiry()):
                        await watcher[1].wait()
        finally:
            self.watchers.discard(watcher)


_stores: dict[str, Store] = {}


def store(name: str = "") -> Store:
    """The store that ``memory://name`` opens."""
    return _stores.setdefault(name, Store())


def _forked() -> None:
    for shared in _stores.values():
        shared.forked()


os.register_at_fork(after_in_child=_forked)


def open_backend(settings: Settings) -> Backend:
    """See :func:`meshlib.backends.open_backend`."""
    if settings.registry.options:
        raise ValueError("memory:// has no options (what follows a '?')")
    shared = store(settings.registry.path)
    return Backend(MemoryRegistry(shared), MemoryKeyValue(shared))


class MemoryRegistry:
    """:class:`~meshlib.backends.base.Registry` over a :class:`Store`."""

    routes: tuple[tuple[str, int], ...] = ()

    def __init__(self, shared: Store) -> None:
        self.store = shared

    async def register(self, instance: Instance, ttl: float) -> None:
        with self.store.lock:
            self.store.check()
            self.store.instances[_key(instance)] = (instance, self.store.clock() + ttl)
            self.store.touch()

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:
        with self.store.lock:
            self.store.check()
            known = self.store.instances.get(_key(instance))
            if known is None or known[0] != instance:
                return False
            self.store.instances[_key(instance)] = (instance, self.store.clock() + ttl)
            return True

    async def deregister(self, instance: Instance) -> None:
        with self.store.lock:
            self.store.check()
            if self.store.instances.pop(_key(instance), None):
                self.store.touch()

    async def fetch(self, service: ServiceUrl) -> Listing:
        wanted = (service.namespace, service.service)
        with self.store.lock:
            self.store.check()
            found = [one for key, (one, _) in self.store.instances.items() if key[:2] == wanted]
            return Listing.of(found, self.store.revision)

    async def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        async with aclosing(self.store.changes()) as changes:
            async for _ in changes:
                yield await self.fetch(service)

    async def services(self, namespace: str) -> list[str]:
        with self.store.lock:
            self.store.check()
            return sorted({name for space, name, _ in self.store.instances if space == namespace})

    async def close(self) -> None:
        return None


def _key(instance: Instance) -> tuple[str, str, str]:
    return (instance.namespace, instance.service, instance.id)


class MemoryKeyValue:
    """:class:`~meshlib.backends.base.KeyValue` over a :class:`Store`."""

    def __init__(self, shared: Store) -> None:
        self.store = shared

    async def get(self, key: str) -> Entry | None:
        with self.store.lock:
            self.store.check()
            return self.store.entries.get(key)

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        with self.store.lock:
            self.store.check()
            return tuple(self.store.entries[key] for key in sorted(self.store.entries) if key.startswith(prefix))

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> None:
        with self.store.lock:
            self._expect(key, expected)
            self.store.entries[key] = Entry(key, value, self.store.touch())

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        with self.store.lock:
            self._expect(key, expected)
            if self.store.entries.pop(key, None):
                self.store.touch()

    def _expect(self, key: str, expected: int | None) -> None:
        self.store.check()
        known = self.store.entries.get(key)
        if expected is not None and expected != (known.revision if known else 0):
            raise CasConflict(f"{key} has another revision than {expected}")

    async def watch(self, prefix: str) -> AsyncIterator[tuple[Entry, ...]]:
        async with aclosing(self.store.changes()) as changes:
            async for _ in changes:
                yield await self.list(prefix)

    async def lock(self, key: str, *, ttl: float) -> MemoryLock | None:
        with self.store.lock:
            self.store.check()
            now = self.store.clock()
            if self.store.locks.get(key, (0, 0.0))[1] > now:
                return None
            fence = self.store.touch()
            self.store.locks[key] = (fence, now + ttl)
            return MemoryLock(self.store, key, fence, ttl)


class MemoryLock:
    """:class:`~meshlib.backends.base.Lock` in a :class:`Store`."""

    def __init__(self, shared: Store, key: str, fence: int, ttl: float) -> None:
        self.store, self.key, self.fence, self.ttl = shared, key, fence, ttl

    async def renew(self) -> bool:
        with self.store.lock:
            self.store.check()
            fence, expires = self.store.locks.get(self.key, (0, 0.0))
            if fence != self.fence or expires <= self.store.clock():
                return False
            self.store.locks[self.key] = (fence, self.store.clock() + self.ttl)
            return True

    async def release(self) -> None:
        with self.store.lock:
            if self.store.locks.get(self.key, (0, 0.0))[0] == self.fence:
                del self.store.locks[self.key]
