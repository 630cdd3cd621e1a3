"""Follow what is under a prefix of etcd: one listing, then the changes, and a check of the whole while nothing changes.

A watch that says nothing may be idle, dead, attached to a member that the others have left behind, or waiting for a
revision that will never come; they look alike. So after ``idle`` seconds without a change the leader is asked how many keys
there are and which was written last, which costs no documents, and the watch is opened anew behind that answer. The same
question covers compaction and a store that lost its state: whatever does not fit is listed again.

The leader is asked as well before a watch is opened for the first time, so that what a member without a quorum lists does
not pass for live; it may come first, where nothing is known yet and something old is better than nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from meshlib.backends.etcd_gateway import Compacted, Gateway
from meshlib.backends.etcd_wire import Pair, Ranged, Watched
from meshlib.errors import RegistryUnavailable

LEADER: Final = 2.0
"""Seconds that the leader has to confirm. etcd 3.4 does not answer a question asked without a leader once there is one, so
this is also a part of how long recovery takes."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of some keys (None: gone) by ``revision``. When ``whole``, no other keys are left."""

    revision: int
    keys: Mapping[bytes, Pair | None]
    whole: bool = False


async def follow(gateway: Gateway, prefix: bytes, *, idle: float, hasty: bool = True) -> AsyncGenerator[Change, None]:
    """The whole of ``prefix`` first, when ``hasty`` from any member before the leader confirms it; then its changes, and an
    empty change as proof of life when there was none for ``idle`` seconds. Ends only by raising
    :class:`~meshlib.errors.RegistryError`."""
    known = _Known(gateway, prefix)
    if hasty:
        yield await known.list(serializable=True)
    change = await known.confirm()
    if change.whole:
        yield change
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + idle
        with suppress(Compacted):
            async with gateway.watch(prefix, known.revision + 1) as answers:
                while (answer := await _before(due, answers)) is not None:
                    if answer.events:
                        yield known.apply(answer)
                        due = clock() + idle
        yield await known.confirm()


async def _before(due: float, answers: AsyncIterator[Watched]) -> Watched | None:
    """The next answer, or None when there is none by ``due`` (time of the loop)."""
    try:
        async with asyncio.timeout_at(due):
            return await anext(answers)
    except TimeoutError:
        return None


class _Known:
    """The keys under a prefix as of a revision."""

    def __init__(self, gateway: Gateway, prefix: bytes) -> None:
        self.gateway, self.prefix = gateway, prefix
        self.revision = 0
        self.keys: dict[bytes, tuple[int, int]] = {}
        """When each was written, and the lease it hangs on."""

    async def list(self, *, serializable: bool) -> Change:
        """Everything anew."""
        answer = await self.gateway.prefix(self.prefix, serializable=serializable)
        self.revision = answer.header.revision
        found = {pair.key: pair for pair in answer.kvs if pair.key.startswith(self.prefix)}
        self.keys = {key: _written(pair) for key, pair in found.items()}
        return Change(self.revision, found, whole=True)

    def apply(self, answer: Watched) -> Change:
        """The events of a watch, the last of each key."""
        keys: dict[bytes, Pair | None] = {}
        for event in answer.events:
            # Not the header's revision: that is the store's, and more events up to it may follow.
            self.revision = max(self.revision, event.kv.mod_revision)
            if event.kv.key.startswith(self.prefix):
                keys[event.kv.key] = event.kv if event.type == "PUT" else None
        for key, pair in keys.items():
            if pair:
                self.keys[key] = _written(pair)
            else:
                self.keys.pop(key, None)
        return Change(self.revision, keys)

    async def confirm(self) -> Change:
        """Ask the leader whether what is known is all there is; if not, or if nothing is, list it again.

        The key that was written last answers for all. Not the revision alone: a store that lost its state may have come as
        far again, with as many keys. Its leases are others.
        """
        answer = await self._newest()
        last = max(self.keys.values(), default=(0, 0))
        fits = all(self.keys.get(pair.key) == _written(pair) and pair.mod_revision == last[0] for pair in answer.kvs)
        stale = answer.header.revision < self.revision or answer.count != len(self.keys)
        if not self.revision or stale or not fits:
            return await self.list(serializable=False)
        self.revision = answer.header.revision
        return Change(self.revision, {})

    async def _newest(self) -> Ranged:
        """What the leader knows of the prefix: how many keys, and which was written last; no documents."""
        try:
            async with asyncio.timeout(LEADER):
                return await self.gateway.prefix(
                    self.prefix, keys_only=True, limit="1", sort_target="MOD", sort_order="DESCEND"
                )
        except TimeoutError:
            self.gateway.client.rotate()
            raise RegistryUnavailable(f"no leader of etcd has confirmed what is known within {LEADER:g} s") from None


def _written(pair: Pair) -> tuple[int, int]:
    return (pair.mod_revision, pair.lease)
