"""Two Consul servers that agree, each the agent of those that register with it: what the backend uses of the HTTP API.

As Consul 1.8 does it: an index that moves with any change; a blocking query that waits until the index is *above* the one
asked for, or for its time; checks that turn critical when nobody passes them; a service that is registered again keeps the
state of its checks; a restored snapshot wakes whoever waits, with an index of the past.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import httpx2

from meshlib.model import Instance, Status
from tests.model.ledger import Ledger
from tests.model.wire import Link, Pulse

JITTER = 16
ENDS = 1e-3
"""Seconds that a timer may be early."""

Key = tuple[int, str]
"""Agent and id of a service."""


@dataclass
class Record:
    """A registered service with its TTL check, which turns critical at ``due``."""

    service: dict[str, Any]
    ttl: float
    passing: bool = False
    maintenance: bool = False
    due: float = 0.0

    def entry(self, node: int) -> dict[str, Any]:
        checks = [{"CheckID": f"service:{self.service['ID']}", "Status": "passing" if self.passing else "critical"}]
        if self.maintenance:
            checks.append({"CheckID": f"_service_maintenance:{self.service['ID']}", "Status": "critical"})
        return {"Node": {"Address": f"10.1.0.{node + 1}"}, "Service": self.service, "Checks": checks}


def copies(records: dict[Key, Record]) -> dict[Key, Record]:
    """A state of their own; what was registered is never changed, but replaced."""
    return {key: replace(record) for key, record in records.items()}


@dataclass(frozen=True)
class Replica:
    """What a server that is behind knows: how it was ``since``; ``led`` when it still reaches a leader."""

    index: int
    records: dict[Key, Record]
    since: float
    led: bool


class FakeConsul:
    """``serve`` is for a :class:`Wire`. Its truth goes to ``ledger``."""

    hosts = range(2)

    def __init__(self, ledger: Ledger, pulse: Pulse, rng: random.Random) -> None:
        self.ledger, self.pulse, self.rng = ledger, pulse, rng
        self.index, self.epoch = 10, 0
        self.records: dict[Key, Record] = {}
        self.behind: dict[int, Replica] = {}
        self.past: list[tuple[int, dict[Key, Record]]] = []

    # -- what befalls it

    def wipe(self) -> None:
        """All state is lost, and the index begins again."""
        self._become(3, {})

    def restore(self, back: int) -> None:
        """An operator restores the state of ``back`` changes ago."""
        index, records = self.past[-1 - back % len(self.past)] if self.past else (3, {})
        self._become(index, copies(records))

    def _become(self, index: int, records: dict[Key, Record]) -> None:
        self.index, self.records, self.epoch = index, records, self.epoch + 1
        self.behind.clear()
        for record in records.values():
            self._lease(record)
        self._publish()

    def lag(self, host: int, *, led: bool) -> None:
        """``host`` falls behind from now on."""
        self.behind[host] = Replica(self.index, copies(self.records), self.ledger.clock(), led)

    def catch_up(self) -> None:
        """No server is behind."""
        self.behind.clear()
        self.pulse.fire()

    def changed(self, written: Record | None = None) -> None:
        """Something was ``written``, or only a check."""
        self.index += self.rng.choice((1, 1, 1, 5))
        if written:
            written.service["ModifyIndex"] = self.index
        self.past.append((self.index, copies(self.records)))
        self._publish()

    def _publish(self) -> None:
        best: dict[str, tuple[tuple[bool, int], Instance]] = {}
        for instance, record in self._alive():
            rank = (instance.status is not Status.MAINTENANCE, record.service["ModifyIndex"])
            if instance.id not in best or rank > best[instance.id][0]:
                best[instance.id] = (rank, instance)
        self.ledger.note(instance for _, instance in best.values())
        self.pulse.fire()

    def _alive(self) -> Iterator[tuple[Instance, Record]]:
        for record in self.records.values():
            meta = record.service["Meta"]
            key = (record.service["ID"], meta.get("mesh-generation", ""), meta.get("mesh-status", "up"))
            instance = self.ledger.ever.get(key)
            if record.passing and instance is not None:
                yield replace(instance, status=Status.MAINTENANCE) if record.maintenance else instance, record

    def _lease(self, record: Record) -> None:
        loop = asyncio.get_running_loop()
        record.due = loop.time() + record.ttl
        loop.call_at(record.due, self._expire, record)

    def _expire(self, record: Record) -> None:
        late = asyncio.get_running_loop().time() >= record.due - ENDS
        if late and record.passing and any(one is record for one in self.records.values()):
            record.passing = False
            self.changed()

    # -- what it answers

    async def serve(self, link: Link, request: httpx2.Request) -> httpx2.Response:
        parts = unquote(request.url.path).removeprefix("/v1/").split("/")
        match request.method, parts:
            case "GET", ["health", "service", name]:
                return await self._health(link, name, request.url.params)
            case "GET", ["agent", "service", ident]:
                record = self.records.get((link.host, ident))
                return httpx2.Response(200, json=record.service) if record else httpx2.Response(404)
            case "PUT", ["agent", "service", "register"]:
                return self._register(link.host, json.loads(request.content))
            case "PUT", ["agent", "service", "deregister", ident]:
                if self.records.pop((link.host, ident), None):
                    self.changed()
                return httpx2.Response(200)
            case "PUT", ["agent", "service", "maintenance", ident]:
                return self._maintain(self.records.get((link.host, ident)), request.url.params["enable"] == "true")
            case "PUT", ["agent", "check", "pass", check]:
                return self._pass(self.records.get((link.host, check.removeprefix("service:"))))
        raise AssertionError(f"the fake Consul knows no {request.method} {request.url}")

    async def _health(self, link: Link, name: str, asked: Any) -> httpx2.Response:
        wait = float(asked.get("wait", "0s").removesuffix("s"))
        until = self.ledger.clock() + wait + self.rng.random() * wait / JITTER
        least, epoch = int(asked.get("index", 0)), self.epoch
        link.outlived = bool(least) and link.wire.epoch != epoch
        while True:
            known = self.behind.get(link.host)
            if known and "stale" not in asked and not known.led:
                return httpx2.Response(500, content=b"No cluster leader")
            if known is None or "stale" not in asked:  # the leader's own, or asked of it
                known = Replica(self.index, self.records, self.ledger.clock(), True)
            left = until - self.ledger.clock()
            if known.index > least or epoch != self.epoch or left <= ENDS:
                link.wire.epoch = self.epoch
                return self._listing(name, known)
            await link.news(left)

    def _listing(self, name: str, known: Replica) -> httpx2.Response:
        found = [record.entry(key[0]) for key, record in known.records.items() if record.service["Service"] == name]
        self.rng.shuffle(found)
        headers = {
            "X-Consul-Index": str(known.index),
            "X-Consul-LastContact": str(int((self.ledger.clock() - known.since) * 1000)),
            "X-Consul-KnownLeader": "true" if known.led else "false",
        }
        return httpx2.Response(200, headers=headers, json=found)

    def _register(self, host: int, told: dict[str, Any]) -> httpx2.Response:
        before = self.records.get((host, told["id"]))
        service = {
            "ID": told["id"], "Service": told["name"], "Address": told["address"], "Port": told["port"],
            "Meta": told.get("meta", {}), "Tags": told.get("tags", []),
            "CreateIndex": before.service["CreateIndex"] if before else self.index + 1,
        }  # fmt: skip
        (check,) = told["checks"]
        record = Record(service, float(check["TTL"].removesuffix("s")))
        if before:
            record.passing, record.maintenance = before.passing, before.maintenance
        self.records[host, told["id"]] = record
        self._lease(record)
        self.changed(record)
        return httpx2.Response(200)

    def _maintain(self, record: Record | None, enable: bool) -> httpx2.Response:
        if record is None:
            return httpx2.Response(404)
        if record.maintenance != enable:
            record.maintenance = enable
            self.changed()
        return httpx2.Response(200)

    def _pass(self, record: Record | None) -> httpx2.Response:
        if record is None:
            return httpx2.Response(500, content=b'CheckID "x" does not have associated TTL')
        self._lease(record)
        if not record.passing:
            record.passing = True
            self.changed()
        return httpx2.Response(200)
