"""Two members of an etcd that agree: what the backend uses of the v3 JSON gateway.

As etcd 3.4 does it: every write has a revision; a watch answers ``created`` with the member's revision, sends what it has
from ``start_revision`` on, and waits in silence for a revision to come; one that was compacted is created first and
cancelled next, on a stream that stays open; a lease that is gone answers a keepalive with 200 and no TTL.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from meshlib.model import Instance
from tests.model.ledger import Ledger
from tests.model.wire import Lines, Link, Pulse

NO_LEADER = 7.0
"""Seconds after which a member without a leader gives up a question for it."""
ENDS = 1e-3


@dataclass(frozen=True)
class Value:
    value: bytes
    revision: int
    lease: int = 0


@dataclass
class Lease:
    ttl: float
    due: float = 0.0
    keys: set[bytes] = field(default_factory=set)


@dataclass(frozen=True)
class Replica:
    """What a member knows that is cut off from the others."""

    revision: int
    keys: dict[bytes, Value]


class FakeEtcd:
    """``serve`` is for a :class:`Wire`. Its truth goes to ``ledger``: ``read`` tells which instance, if any, a key holds."""

    hosts = range(2)

    def __init__(
        self, ledger: Ledger, pulse: Pulse, rng: random.Random, read: Callable[[bytes, bytes], Instance | None]
    ) -> None:
        self.ledger, self.pulse, self.rng, self.read = ledger, pulse, rng, read
        self.listed_once: Callable[[], None] | None = None
        """Called after the next range has been answered: for what happens between a listing and its watch."""
        self._begin()

    def _begin(self) -> None:
        self.revision, self.compacted = 1, 0
        self.keys: dict[bytes, Value] = {}
        self.log: list[tuple[int, dict[str, Any]]] = []
        self.leases: dict[int, Lease] = {}
        self.behind: dict[int, Replica] = {}

    # -- what befalls it

    def wipe(self) -> None:
        """All state is lost, and the revision begins again."""
        self._begin()
        self._publish()

    def compact(self) -> None:
        """Forget all but the present."""
        self.compacted = self.revision

    def lag(self, host: int) -> None:
        """``host`` is cut off from the others from now on."""
        self.behind[host] = Replica(self.revision, dict(self.keys))

    def catch_up(self) -> None:
        """No member is cut off."""
        self.behind.clear()
        self.pulse.fire()

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Write, as one transaction."""
        self._detach(key)
        self.revision += 1
        self.keys[key] = Value(value, self.revision, lease)
        if lease:
            self.leases[lease].keys.add(key)
        self._log({"kv": self._pair(key, self.keys[key])})

    def delete(self, key: bytes) -> None:
        """Remove, if it is there."""
        if key in self.keys:
            self._detach(key)
            self.revision += 1
            del self.keys[key]
            self._log({"type": "DELETE", "kv": {"key": b64(key), "mod_revision": str(self.revision)}})

    def _detach(self, key: bytes) -> None:
        if key in self.keys and self.keys[key].lease in self.leases:
            self.leases[self.keys[key].lease].keys.discard(key)

    def _log(self, event: dict[str, Any]) -> None:
        self.log.append((self.revision, event))
        self._publish()

    def _publish(self) -> None:
        found = (self.read(key, one.value) for key, one in self.keys.items())
        self.ledger.note(one for one in found if one is not None)
        self.pulse.fire()

    def _prolong(self, ident: int) -> None:
        loop, lease = asyncio.get_running_loop(), self.leases[ident]
        lease.due = loop.time() + lease.ttl
        loop.call_at(lease.due, self._expire, ident, lease)

    def _expire(self, ident: int, lease: Lease) -> None:
        if self.leases.get(ident) is lease and asyncio.get_running_loop().time() >= lease.due - ENDS:
            self._revoke(ident)

    def _revoke(self, ident: int) -> None:
        lease = self.leases.pop(ident, None)
        for key in sorted(lease.keys) if lease else ():
            self.delete(key)

    # -- what it answers

    async def serve(self, link: Link, request: httpx2.Request) -> httpx2.Response:
        body, name = json.loads(request.content), request.url.path.removeprefix("/v3/")
        if name == "watch":
            return httpx2.Response(200, stream=Lines(self._watch(link, body["create_request"])))
        if name != "kv/range" or not body.get("serializable"):
            until = self.ledger.clock() + NO_LEADER
            while link.host in self.behind:
                if self.ledger.clock() >= until - ENDS:
                    return httpx2.Response(503, json={"error": "etcdserver: request timed out", "code": 14})
                await link.news(until - self.ledger.clock())
        answer = getattr(self, "_" + name.replace("/", "_"))(link, body)
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    def _kv_range(self, link: Link, body: dict[str, Any]) -> dict[str, Any]:
        known = self.behind.get(link.host) or Replica(self.revision, self.keys)
        key, end = un64(body["key"]), un64(body["range_end"])
        found = sorted(one for one in known.keys if key <= one < end or one == key)
        if body.get("sort_target") == "MOD":
            found.sort(key=lambda one: known.keys[one].revision, reverse=body["sort_order"] == "DESCEND")
        shown = found[: int(body.get("limit", 0)) or None]
        bare = bool(body.get("keys_only"))
        answer = {
            "header": {"revision": str(known.revision)},
            "kvs": [self._pair(one, known.keys[one], bare=bare) for one in shown],
            "count": str(len(found)),
        }
        hook, self.listed_once = self.listed_once, None
        if hook:
            hook()
        return answer

    def _kv_put(self, _: Link, body: dict[str, Any]) -> Any:
        lease = int(body["lease"])
        if lease and lease not in self.leases:
            return httpx2.Response(404, json={"error": "etcdserver: requested lease not found", "code": 5})
        self.put(un64(body["key"]), un64(body["value"]), lease)
        return {"header": {"revision": str(self.revision)}}

    def _kv_deleterange(self, _: Link, body: dict[str, Any]) -> dict[str, Any]:
        self.delete(un64(body["key"]))
        return {"header": {"revision": str(self.revision)}}

    def _lease_grant(self, _: Link, body: dict[str, Any]) -> dict[str, Any]:
        ident = self.rng.randrange(1, 2**62)
        self.leases[ident] = Lease(max(2.0, float(body["TTL"])))
        self._prolong(ident)
        return {"ID": str(ident), "TTL": body["TTL"]}

    def _lease_keepalive(self, _: Link, body: dict[str, Any]) -> dict[str, Any]:
        ident = int(body["ID"])
        if ident not in self.leases:
            return {"result": {"ID": body["ID"]}}
        self._prolong(ident)
        return {"result": {"ID": body["ID"], "TTL": str(int(self.leases[ident].ttl))}}

    def _lease_revoke(self, _: Link, body: dict[str, Any]) -> Any:
        if int(body["ID"]) not in self.leases:
            return httpx2.Response(404, json={"error": "etcdserver: requested lease not found", "code": 5})
        self._revoke(int(body["ID"]))
        return {}

    async def _watch(self, link: Link, create: dict[str, Any]) -> AsyncIterator[bytes]:
        key, end, following = un64(create["key"]), un64(create["range_end"]), int(create["start_revision"])
        yield line(self._reached(link), created=True)
        if following < self.compacted:
            yield line(self._reached(link), canceled=True, compact_revision=str(self.compacted))
            while True:
                await link.news()
        while True:
            reached = self._reached(link)
            events = [event for revision, event in self.log if following <= revision <= reached]
            mine = [event for event in events if key <= un64(event["kv"]["key"]) < end]
            following = max(following, reached + 1)
            if mine:
                yield line(reached, events=mine)
            else:
                await link.news()

    def _reached(self, link: Link) -> int:
        return self.behind[link.host].revision if link.host in self.behind else self.revision

    @staticmethod
    def _pair(key: bytes, one: Value, *, bare: bool = False) -> dict[str, Any]:
        pair = {"key": b64(key), "mod_revision": str(one.revision), "lease": str(one.lease)}
        return pair if bare else pair | {"value": b64(one.value)}


def line(revision: int, **result: Any) -> bytes:
    """One answer of a watch."""
    return json.dumps({"result": {"header": {"revision": str(revision)}, **result}}).encode() + b"\n"


def b64(text: bytes) -> str:
    """As the gateway writes bytes."""
    return base64.b64encode(text).decode()


def un64(text: str) -> bytes:
    """The inverse."""
    return base64.b64decode(text)
