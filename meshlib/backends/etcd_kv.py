"""The key-value store and the locks of etcd; :mod:`meshlib.backends.etcd` says where they are and how fresh reads are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from meshlib.backends.base import Entry
from meshlib.backends.etcd_gateway import Gateway
from meshlib.backends.etcd_watch import follow
from meshlib.backends.etcd_wire import Pair
from meshlib.errors import CasConflict, RegistryError


class EtcdKeyValue:
    """:class:`~meshlib.backends.base.KeyValue` under ``root``; an entry's revision is etcd's ``mod_revision``."""

    def __init__(self, gateway: Gateway, *, root: str = "/meshlib", idle: float = 10.0) -> None:
        self._gateway, self._idle = gateway, idle
        self._root, self._locks = f"{root}/kv/".encode(), f"{root}/locks/".encode()

    async def get(self, key: str) -> Entry | None:
        found = (await self._gateway.range(self._key(key))).kvs
        return self._entry(found[0]) if found else None

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        return _ordered({pair.key: self._entry(pair) for pair in (await self._gateway.prefix(self._key(prefix))).kvs})

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> None:
        if expected is None:
            await self._gateway.put(self._key(key), value)
        else:
            await self._write(key, expected, {"request_put": {"key": self._key(key), "value": value}})

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        if expected is None:
            await self._gateway.delete(self._key(key))
        else:
            await self._write(key, expected, {"request_delete_range": {"key": self._key(key)}})

    async def _write(self, key: str, expected: int, write: Mapping[str, Any]) -> None:
        if not (await self._gateway.write_if(self._key(key), expected, write)).succeeded:
            raise CasConflict(f"{key} has another revision than {expected}")

    async def watch(self, prefix: str) -> AsyncIterator[tuple[Entry, ...]]:
        entries: dict[bytes, Entry] = {}
        async with aclosing(follow(self._gateway, self._key(prefix), idle=self._idle)) as changes:
            async for change in changes:
                if change.whole:
                    entries.clear()
                for key, pair in change.keys.items():
                    if pair:
                        entries[key] = self._entry(pair)
                    else:
                        entries.pop(key, None)
                yield _ordered(entries)

    async def lock(self, key: str, *, ttl: float) -> EtcdLock | None:
        where = self._locks + _bytes(key)
        if (await self._gateway.range(where)).kvs:
            return None  # before a lease is asked for: most attempts of a waiting process end here
        lease = await self._gateway.grant(ttl)
        try:
            taken = await self._gateway.write_if(where, 0, {"request_put": {"key": where, "lease": str(lease)}})
        except BaseException:  # a cancellation, too: what was asked for may have been done
            await _drop(self._gateway, lease)
            raise
        if not taken.succeeded:
            await _drop(self._gateway, lease)
            return None
        return EtcdLock(self._gateway, where, lease, taken.header.revision)

    def _key(self, key: str) -> bytes:
        return self._root + _bytes(key)

    def _entry(self, pair: Pair) -> Entry:
        # Keys written by others need not be UTF-8; they come back as they are when used again.
        return Entry(pair.key.removeprefix(self._root).decode("utf-8", "surrogateescape"), pair.value, pair.mod_revision)


class EtcdLock:
    """:class:`~meshlib.backends.base.Lock`: a key that hangs on a lease; ``fence`` is the revision that created it."""

    def __init__(self, gateway: Gateway, key: bytes, lease: int, fence: int) -> None:
        self.fence = fence
        self._gateway, self._key, self._lease = gateway, key, lease

    async def renew(self) -> bool:
        if not await self._gateway.keepalive(self._lease):
            return False
        found = (await self._gateway.range(self._key)).kvs
        return [(pair.lease, pair.create_revision) for pair in found] == [(self._lease, self.fence)]

    async def release(self) -> None:
        await self._gateway.revoke(self._lease)


async def _drop(gateway: Gateway, lease: int) -> None:
    with suppress(RegistryError):
        await gateway.revoke(lease)


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _ordered(entries: Mapping[bytes, Entry]) -> tuple[Entry, ...]:
    return tuple(entries[key] for key in sorted(entries))
