"""A dozen histories on real servers, which are killed, stopped, cut off, compacted and wiped meanwhile.

Six services have a history of their own each, and share a server and what befalls it. Time is real here, and machines are
slow at times: each view has :data:`PATIENCE` to converge, most of them :data:`CONVERGED` seconds.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Self

import pytest

from meshlib.backends import Backend, open_backend
from meshlib.backends.codec import encode
from meshlib.discovery import follow
from meshlib.discovery.merge import Known
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings
from tests.model.checker import CONVERGED, Checker, Violation, _named, must
from tests.model.ledger import Listed
from tests.model.subjects import NAMES, Subject, Watched
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer, b64
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.anyio

SERVICES = 6
PATIENCE = 30.0
STEPS = ("start", "start", "leave", "say", "beat", "unlist", "crash")
WAIT = 2
"""Seconds that a silent watch is trusted."""


class Cluster:
    """A server, the way to it, and what can befall both."""

    faults: tuple[str, ...] = ("cut", "freeze", "stall", "wipe", "kill")
    patience = PATIENCE
    make: Callable[[], ConsulServer | EtcdServer]

    def __init__(self, server: ConsulServer | EtcdServer) -> None:
        self.server = server
        self.proxy = Proxy("127.0.0.1", server.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.close()

    def opened(self, port: int) -> Backend:
        return open_backend(Settings(registry=f"{self.server.name}://127.0.0.1:{port}?wait={WAIT}"))

    def listed(self, service: ServiceUrl, ever: list[Instance]) -> Listed | None:
        """Those of ``ever`` that the server lists; None while it does not say."""
        raise NotImplementedError

    # -- what befalls it; each ends with all being well, but for connections that died

    def kill(self) -> None:
        self.server.kill()
        self.server.start()

    def wipe(self) -> None:
        self.server.kill()
        self.server.wipe()
        self.server.start()

    def freeze(self) -> None:
        self.server.freeze()
        time.sleep(0.7)
        self.server.thaw()

    def stall(self) -> None:
        self.proxy.stall()
        time.sleep(0.7)
        self.proxy.resume()

    def cut(self) -> None:
        self.proxy.forget()


class ConsulCluster(Cluster):
    make = ConsulServer

    def listed(self, service: ServiceUrl, ever: list[Instance]) -> Listed | None:
        status, found = self.server.call("GET", f"/v1/health/service/{service.service}?consistent")  # type: ignore[call-arg,misc]
        if status != 200:
            return None
        known = {(one.id, one.generation, one.status.value): one for one in ever}
        alive = [
            one for one in found if all(check["Status"] == "passing" or "maint" in check["CheckID"] for check in one["Checks"])
        ]
        keys = ((one["Service"]["ID"], one["Service"]["Meta"]) for one in alive)
        instances = [known[name, meta["mesh-generation"], meta.get("mesh-status", "up")] for name, meta in keys]
        return tuple(sorted(instances, key=lambda one: one.id))


class EtcdCluster(Cluster):
    make = EtcdServer
    faults = ("cut", "compact", *Cluster.faults[1:])

    def compact(self) -> None:
        self.server.compact()  # type: ignore[union-attr]

    def listed(self, service: ServiceUrl, ever: list[Instance]) -> Listed | None:
        prefix = f"/meshlib/default/services/{service.service}/"
        try:
            answer = self.server.call("/v3/kv/range", key=b64(prefix), range_end=b64(prefix[:-1] + "0"))  # type: ignore[call-arg,arg-type]
        except OSError:
            return None
        known = {b64(encode(one)): one for one in ever}
        return tuple(sorted((known[pair["value"]] for pair in answer.get("kvs", [])), key=lambda one: one.id))  # type: ignore[union-attr,index]


class Real(Subject):
    """One service on a real server."""

    def __init__(self, cluster: Cluster, number: int, rng: random.Random, providing: Backend) -> None:
        super().__init__(ServiceUrl(f"orders-{number}"), time.monotonic, rng)
        self.cluster = cluster
        self.names = tuple(f"s{number}-{name}" for name in NAMES)  # ids are one agent's, whatever the service
        self.backend = cluster.opened(cluster.proxy.port)
        self.registry, self.providing = Watched(self.backend.registry, self), [providing.registry]  # type: ignore[assignment]

    def ttl(self, instance: Instance) -> float:
        return 60.0  # none expires meanwhile

    async def truth(self) -> Listed | None:
        return await asyncio.to_thread(self.cluster.listed, self.service, list(self.ledger.ever.values()))

    async def busy(self, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(self.rng.choice((0.0, 0.05, 0.2)))
            await self.do(self.rng.choice(STEPS), self.rng.randrange(12), 3 * self.rng.randrange(4) + self.rng.randrange(2))

    async def registered(self) -> None:
        """Have every process listed again."""
        async with asyncio.timeout(PATIENCE):
            while not {one.id for one in await self.truth() or ()} >= self.running.keys() - self.unlisted:
                await self.beat(0, 0)


class RealChecker(Checker):
    """What the server lists at which moment nobody knows; so what is published is compared with it at the end only."""

    def _true(self, before: Known | None, known: Known) -> None:
        since = before.snapshot.confirmed if before else 0.0
        must(since <= known.snapshot.confirmed <= self.wall(), "confirmed out of order")
        must(known.snapshot.revision.isdigit(), f"revision {known.snapshot.revision!r}")

    def look(self) -> None:
        if self.violation:
            raise self.violation
        must(not self.task.done(), "the follower ended")

    async def settle(self) -> tuple[float, float]:
        """Seconds to contact, and from there to convergence."""
        assert isinstance(self.subject, Real)
        start = self.clock()
        self.subject.healed()
        while self.subject.contact() is None or not self.view.live or self._listed() != await self.subject.truth():
            self.look()
            must(
                self.clock() - start < self.subject.cluster.patience,
                f"{self.subject.service}: {self.shown}, listed {_named(await self.subject.truth() or ())}",
            )
            await asyncio.sleep(0.01)
        contact = self.subject.contact()
        assert contact is not None
        return contact - start, self.clock() - contact


@contextmanager
def started(*kinds: type[Cluster]) -> Iterator[list[Cluster]]:
    with ExitStack() as stack:
        servers = [stack.enter_context(closing(kind.make())) for kind in kinds]
        for server in servers:
            server.start()
        yield [stack.enter_context(kind(server)) for kind, server in zip(kinds, servers, strict=True)]


@pytest.fixture
def clusters() -> Iterator[list[Cluster]]:
    with started(ConsulCluster, EtcdCluster) as clusters:
        yield clusters


async def histories(cluster: Cluster, seed: int) -> list[tuple[float, float]]:
    """Play them, and say how long each took to contact after the last fault, and then to converge."""
    rng = random.Random(seed)
    providing = cluster.opened(cluster.server.port)
    subjects = [Real(cluster, number, random.Random(seed + number), providing) for number in range(SERVICES)]
    checkers = [RealChecker(subject, time.monotonic, subject.rng) for subject in subjects]
    try:
        # First the one that a silent connection keeps from being noticed for seconds, last the one that breaks them all.
        first, *others, last = cluster.faults
        for fault in [first, *rng.sample(others, len(others)), last]:
            await asyncio.gather(*(subject.busy(3) for subject in subjects))
            await asyncio.gather(asyncio.to_thread(getattr(cluster, fault)), *(subject.busy(3) for subject in subjects))
        took = list(await asyncio.gather(*(checker.settle() for checker in checkers)))
        await asyncio.gather(*(subject.registered() for subject in subjects))
        await asyncio.gather(*(checker.settle() for checker in checkers))
        return took
    finally:
        await asyncio.gather(*(checker.close() for checker in checkers))
        await asyncio.gather(*(backend.close() for backend in (providing, *(subject.backend for subject in subjects))))


@pytest.mark.alone
async def test_histories_on_servers() -> None:
    slow: tuple[type[Cluster], ...] = (ConsulCluster, EtcdCluster)
    for seed in (1, 100, 200):  # how quick views are says something of the machine, too: once they are as they should be
        with started(*slow) as clusters:
            took = await asyncio.gather(*(histories(cluster, seed) for cluster in clusters))
            slow = tuple(type(cluster) for cluster, pairs in zip(clusters, took, strict=True) if not prompt(cluster, pairs))
        if not slow:
            return
    pytest.fail(f"most views took longer to converge with {slow}")


def prompt(cluster: Cluster, pairs: list[tuple[float, float]]) -> bool:
    """Whether most views converged in time."""
    told = ", ".join(f"{contact:.2f}+{convergence:.2f}" for contact, convergence in pairs)
    print(f"{cluster.server.name}: seconds to contact, and from there to convergence: {told}")
    return statistics.median(convergence for _, convergence in pairs) <= CONVERGED


async def test_without_another_attempt_no_view_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "backoff", lambda *_: 10 * PATIENCE)
    monkeypatch.setattr(EtcdCluster, "patience", 2.0)
    monkeypatch.setattr(EtcdCluster, "faults", ("cut", "kill"))
    with started(EtcdCluster) as (cluster,):
        with pytest.raises(Violation, match="orders-"):
            await histories(cluster, 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
async def test_more_histories_on_servers(clusters: list[Cluster], seed: int) -> None:
    await asyncio.gather(*(histories(cluster, 10 * seed) for cluster in clusters))
