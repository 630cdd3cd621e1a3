"""Consul and etcd as subjects: the backends as they are, over a fake cluster on a fake network."""

from __future__ import annotations

from typing import Any

from meshlib.backends.base import Registry
from meshlib.backends.codec import encode
from meshlib.backends.consul import backend_over
from meshlib.backends.consul_http import MARGIN
from meshlib.backends.etcd import EtcdRegistry
from meshlib.backends.etcd_gateway import Gateway
from meshlib.backends.http import ControlClient
from meshlib.discovery.follow import BACKOFF_CAP
from meshlib.model import Instance
from meshlib.settings import Settings
from tests.model.fake_consul import JITTER, FakeConsul
from tests.model.fake_etcd import FakeEtcd
from tests.model.subjects import Subject
from tests.model.wire import REFUSED, SILENT, STALLED, Pulse, Wire

DELAYS = (0.0, 0.001, 0.02)
TIMEOUT = 3.0
MODES = (REFUSED, SILENT, STALLED)


class Networked(Subject):
    """A cluster of two behind a network that can be hurt. Providers have a network of their own, which is well."""

    fake: Any
    faults = {"cut": 5, "kick": 2, "join": 4, "kill": 2, "wipe": 2, "revive": 3, "lag": 3, "catch_up": 2, "vandal": 1}

    async def open(self) -> None:
        self.pulse = Pulse()
        self.fake = self.make()
        self.wires = [Wire(self.fake.serve, self.pulse, self.rng, DELAYS) for _ in range(3)]
        self.wire = self.wires[0]
        hosts = [(("host0", 1), ("host1", 1)), (("host0", 1),), (("host1", 1),)]
        clients = [ControlClient(one, timeout=TIMEOUT, transport=wire) for one, wire in zip(hosts, self.wires, strict=True)]
        self.registry, *self.providing = [self.client(client) for client in clients]
        self.lost_since: float | None = None

    async def close(self) -> None:
        for registry in (self.registry, *self.providing):
            await registry.close()

    def make(self) -> Any:
        """The fake cluster."""
        raise NotImplementedError

    def client(self, client: ControlClient) -> Registry:
        """The backend over ``client``."""
        raise NotImplementedError

    # -- faults

    async def cut(self, who: int, how: int) -> None:
        """The view's way to one server or to both is cut."""
        self.wire.cut((range(2), range(2), range(1), range(1, 2))[who % 4], MODES[how % 3])
        self._note()

    async def kick(self, who: int, how: int) -> None:
        """The view's connections break, and can be made again; or die without a word."""
        self.wire.sever(range(2), (REFUSED, SILENT)[how % 2])

    async def join(self, who: int, how: int) -> None:
        """The view's network is well again."""
        self.wire.heal()
        self._note()

    async def kill(self, who: int, how: int) -> None:
        """All servers are killed."""
        for wire in self.wires:
            wire.down = True
            wire.sever(range(2))
        self._note()

    async def wipe(self, who: int, how: int) -> None:
        """All servers are killed, and come back without their state."""
        await self.kill(who, how)
        self.fake.wipe()
        await self.revive(who, how)

    async def revive(self, who: int, how: int) -> None:
        """Servers that were killed are started."""
        for wire in self.wires:
            wire.down = False
        self._note()

    async def catch_up(self, who: int, how: int) -> None:
        """No server is behind the others."""
        self.fake.catch_up()

    async def mend(self) -> None:
        self.wire.heal()
        await self.revive(0, 0)
        self.fake.catch_up()

    def _note(self) -> None:
        refused = self.wire.down or all(self.wire.modes.get(host) == REFUSED for host in range(2))
        self.lost_since = (self.lost_since or self.clock()) if refused else None

    def lost(self) -> float | None:
        if self.lost_since is not None and self.wire.links:
            self.lost_since = self.clock()  # a question is under way that has not been refused: it was dropped before
        return self.lost_since

    def answered(self) -> float:
        return self.wire.answered

    def healed(self) -> None:
        self._healed, self._held = self.clock(), self.wire.attached()
        self.wire.questions.clear()

    def contact(self) -> float | None:
        if any(not link.given_up for link in self._held):
            return self._healed
        good = (asked for asked, link in self.wire.questions if not link.outlived and not link.given_up)
        return min(good, default=None)


class Consul(Networked):
    """With servers that are behind, and snapshots of the past restored."""

    name = "consul"
    faults = {**Networked.faults, "restore": 3}
    wait, stale_max = 4.0, 2.0
    blind = wait * (1 + 1 / JITTER) + MARGIN + BACKOFF_CAP + 1.0

    def make(self) -> FakeConsul:
        return FakeConsul(self.ledger, self.pulse, self.rng)

    def client(self, client: ControlClient) -> Registry:
        settings = Settings(registry=f"consul://host0?wait={self.wait:g}", stale_max=self.stale_max)
        return backend_over(client, settings).registry

    async def lag(self, who: int, how: int) -> None:
        """A server falls behind; it may know no leader."""
        self.fake.lag(who % 2, led=bool(how % 3))

    async def restore(self, who: int, how: int) -> None:
        """The servers take back the state of some time ago, and its index."""
        if not self.wire.down:
            self.fake.restore(1 + how % 8)

    async def vandal(self, who: int, how: int) -> None:
        """Somebody registers what nobody can call."""
        hostile = ("2130706433", "x@evil", "10.0.0.5\r\nX: 1", "[::1", "fe80::1%eth0")[how % 5]
        told = {"id": "p9", "name": "orders", "address": hostile, "port": 80, "checks": [{"TTL": "30s"}]}
        if not self.wire.down:
            self.fake._register(0, told)
            self.fake._pass(self.fake.records[0, "p9"])

    def bound(self, first: bool) -> float:
        return float("inf") if first else self.stale_max + 1.0


class Etcd(Networked):
    """With members that are cut off from the others, and compaction at any moment."""

    name = "etcd"
    faults = {**Networked.faults, "compact": 2, "overtaken": 3}
    idle = 4.0
    blind = idle + TIMEOUT + BACKOFF_CAP + 1.0

    def make(self) -> FakeEtcd:
        return FakeEtcd(self.ledger, self.pulse, self.rng, self._read)

    def client(self, client: ControlClient) -> Registry:
        return EtcdRegistry(Gateway(client), idle=self.idle)

    def _prefix(self) -> bytes:
        return f"/meshlib/{self.service.namespace or 'default'}/services/{self.service.service}/".encode()

    def _read(self, key: bytes, value: bytes) -> Instance | None:
        """The instance that a provider wrote so."""
        for instance in self.ledger.ever.values():
            if key == self._prefix() + instance.id.encode() and value == encode(instance):
                return instance
        return None

    async def lag(self, who: int, how: int) -> None:
        """A member is cut off from the others."""
        self.fake.lag(who % 2)

    async def compact(self, who: int, how: int) -> None:
        """Something else is written, and the history before it is forgotten."""
        self.fake.put(b"/other", b"x")
        self.fake.compact()

    async def overtaken(self, who: int, how: int) -> None:
        """The view has to list again; right behind its listing comes a change that is compacted at once."""
        self.wire.sever(range(2))
        instances = list(self.running.values())

        def behind() -> None:
            if instances:
                one = instances[who % len(instances)]
                self.fake.delete(self._prefix() + one.id.encode())
            self.fake.put(b"/other", b"y")
            self.fake.compact()

        self.fake.listed_once = behind

    async def vandal(self, who: int, how: int) -> None:
        """Somebody writes what is no instance, or one under the name of another."""
        claimed = encode(Instance(self.service.service, NAMED[how % 3], "10.6.6.6", 666, namespace=self.service.namespace))
        self.fake.put(self._prefix() + b"p9", (claimed, b"{", b"\xff", b"[]", b'{"id":"p9","host":"x@evil","port":1}')[who % 5])

    def bound(self, first: bool) -> float:
        return float("inf")


NAMED = ("p0", "p1", "p2")
