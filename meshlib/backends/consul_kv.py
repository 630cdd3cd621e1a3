"""Consul's key-value store and its locks, which are sessions."""

from __future__ import annotations

import math
from builtins import list as listof  # in the class below, list is a method
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec
from msgspec import field

from meshlib.backends.base import Entry
from meshlib.backends.consul_http import Api, follow, whole
from meshlib.errors import CasConflict, ConfigError, InvalidAnswer, RegistryError, RegistryUnavailable

LOCK_SUFFIX = "/.lock"
LOCK_FLAG = 0x2DDCCBC058A50C18
"""Where and how ``consul lock`` marks its locks: it and meshlib keep each other out. Listings leave such keys out."""


class Item(msgspec.Struct):
    """A key as Consul shows it, its value decoded."""

    key: str = field(name="Key")
    revision: int = field(name="ModifyIndex")
    value: bytes | None = field(name="Value", default=None)
    flags: int = field(name="Flags", default=0)
    session: str = field(name="Session", default="")

    def entry(self) -> Entry:
        return Entry(self.key, self.value or b"", self.revision)


class ConsulKeyValue:
    """:class:`~meshlib.backends.base.KeyValue` over Consul's. Reads go through the leader: they are of policies and of
    what compare-and-set builds on. A value has at most 512 KiB."""

    def __init__(self, api: Api, wait: float) -> None:
        self._api, self._wait = api, wait

    async def get(self, key: str) -> Entry | None:
        item = await item_at(self._api, usable(key))
        return item.entry() if item and item.flags != LOCK_FLAG else None

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        return (await self._list(usable(prefix), 0))[1]

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> None:
        if not await self._api.kv.put(usable(key), value, cas=expected):
            raise CasConflict(f"{key} has another revision than {expected}")

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        if expected is None:
            await self._api.kv.delete(usable(key))
        elif expected > 0:
            # Not delete?cas: that calls it a success when the key is not there.
            await self._transaction(
                {"Verb": "check-index", "Key": usable(key), "Index": expected}, {"Verb": "delete", "Key": key}
            )
        elif await self.get(key):
            raise CasConflict(f"{key} is there")

    async def watch(self, prefix: str) -> AsyncIterator[tuple[Entry, ...]]:
        async with aclosing(follow(partial(self._list, usable(prefix)))) as listings:
            async for _, entries in listings:
                yield entries

    async def lock(self, key: str, *, ttl: float) -> ConsulLock | None:
        """As the protocol has it; ``ttl`` is 10 s to a day, whatever is asked for."""
        whole_ttl = min(max(math.ceil(ttl), 10), 86_400)
        # Without lock-delay: Consul's 15 s are for holders that do not know fences.
        session = await self._api.session.create(f"meshlib {key}"[:128], lock_delay=0, ttl=whole_ttl)
        if not isinstance(session, str):
            raise InvalidAnswer("Consul made a session without an id")
        lock = ConsulLock(self._api, usable(key) + LOCK_SUFFIX, session)
        try:
            if await self._api.kv.put(lock.key, b"", flags=LOCK_FLAG, acquire=session):
                lock.fence = await lock.held()
        except BaseException:
            with suppress(RegistryError):
                await lock.release()
            raise
        if lock.fence:
            return lock
        await lock.release()
        return None

    async def _list(self, prefix: str, index: int) -> tuple[int, tuple[Entry, ...]]:
        answered, found = await self._api.kv.get(prefix, index=index, wait=f"{self._wait:g}s", recurse=True)
        items: listof[Item] = _typed(found, listof[Item] | None) or []
        entries = (item.entry() for item in items if item.flags != LOCK_FLAG)
        return whole(answered), tuple(sorted(entries, key=lambda entry: entry.key))

    async def _transaction(self, *operations: dict[str, Any]) -> None:
        """All or nothing; :class:`CasConflict` for nothing."""
        body = msgspec.json.encode([{"KV": operation} for operation in operations])
        if not await self._api.http.put(lambda response: response.code == 200, "/v1/txn", self._api.where, body):
            raise RegistryUnavailable("this Consul has no transactions")


class ConsulLock:
    """:class:`~meshlib.backends.base.Lock` as a session that holds a key. The fence is the key's ModifyIndex at the time it
    was acquired: it grows as long as Consul keeps its state."""

    fence = 0

    def __init__(self, api: Api, key: str, session: str) -> None:
        self._api, self.key, self.session = api, key, session

    async def held(self) -> int:
        """The key's ModifyIndex while we hold it, else 0."""
        item = await item_at(self._api, self.key)
        return item.revision if item and item.session == self.session else 0

    async def renew(self) -> bool:
        return bool(await self._api.session.renew(self.session)) and bool(await self.held())

    async def release(self) -> None:
        await self._api.session.destroy(self.session)


async def item_at(api: Api, key: str) -> Item | None:
    """What is at ``key``."""
    _, found = await api.kv.get(key)
    item: Item | None = _typed(found, Item | None)
    return item


def usable(key: str) -> str:
    """``key``, unless an HTTP path cannot carry it: then raises :class:`ConfigError`."""
    parts = key.split("/")
    if key and ({"", ".", ".."} & set(parts[:-1]) or parts[-1] in (".", "..")):
        raise ConfigError("key", f"{key[:80]!r} has a part that is empty, '.' or '..'", example="policies/orders")
    return key


def _typed(found: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(found, kind)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise InvalidAnswer(f"a key of Consul: {problem}") from problem
