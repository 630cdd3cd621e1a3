"""Our own entry through everything that may happen to its registry, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from meshlib.backends.memory import MemoryRegistry, Store
from meshlib.discovery.address import suspicious
from meshlib.discovery.follow import BACKOFF_CAP
from meshlib.discovery.registration import Reconciler, describe
from meshlib.errors import RegistryUnavailable
from meshlib.model import Instance, Status
from meshlib.settings import Settings
from meshlib.testing import FakeClock, run_virtual
from tests.unit.discovery.scripted import Scripted

KEY = ("", "orders", "orders-127.0.0.1-8080")


class World:
    def __init__(self, registry: Any = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.store = Store(clock=self.clock)
        self.registry = registry or MemoryRegistry(self.store)
        self.settings = Settings(registry="memory://", service="orders", **settings)
        self.reconciler = Reconciler(
            self.settings, self._registry, port=8080, generation="g1", uniform=lambda: 1.0
        )  # fmt: skip

    async def _registry(self) -> Any:
        if isinstance(self.registry, BaseException):
            raise self.registry
        return self.registry

    @property
    def entry(self) -> Instance | None:
        self.store.check()
        return self.store.instances.get(KEY, (None, 0.0))[0]


def play(world: World, story: Callable[[World], Awaitable[None]]) -> World:
    async def main() -> None:
        world.reconciler.start()
        try:
            await story(world)
        finally:
            await world.reconciler.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main(), clock=world.clock)
    return world


async def settle() -> None:
    await asyncio.sleep(1e-3)


def test_it_registers_and_heartbeats_every_third_of_the_ttl() -> None:
    async def story(world: World) -> None:
        await settle()
        assert world.reconciler.made.result(0).netloc == "127.0.0.1:8080"
        await asyncio.sleep(60)

    world = play(World(Scripted(), ttl=15.0), story)
    assert world.registry.log[:4] == ["register up", "heartbeat up", "heartbeat up", "heartbeat up"]
    gaps = [round(b - a, 2) for a, b in zip(world.registry.at[1:-2], world.registry.at[2:-1], strict=True)]
    assert set(gaps) == {5.0}
    assert world.registry.log[-1] == "deregister up"


def test_it_stays_listed_and_is_gone_after_the_stop() -> None:
    async def story(world: World) -> None:
        for _ in range(100):
            await asyncio.sleep(10)
            assert world.entry is not None

    assert play(World(), story).store.instances == {}


def test_whatever_removed_it_the_next_heartbeat_puts_it_back() -> None:
    async def story(world: World) -> None:
        await settle()
        made = world.reconciler.made.result(0)
        world.store.instances.clear()
        await asyncio.sleep(5.1)
        assert world.entry == made

    play(World(ttl=15.0), story)


def test_after_an_outage_it_is_back_within_the_backoff_cap(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        await settle()
        world.store.set_down(True)
        await asyncio.sleep(600)
        assert world.reconciler.problem == "the memory registry is down"
        world.store.set_down(False)
        assert world.entry is None
        await asyncio.sleep(BACKOFF_CAP + 0.01)
        assert world.entry is not None
        assert world.reconciler.problem == ""

    play(World(), story)
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert texts == [
        "orders is not registered, trying again: the memory registry is down",
        "orders/orders-127.0.0.1-8080 is registered now",
    ]


@pytest.mark.parametrize("status", [Status.DRAINING, Status.MAINTENANCE])
def test_a_wish_takes_effect_at_once(status: Status) -> None:
    async def story(world: World) -> None:
        await settle()
        world.reconciler.wish(status)
        await settle()
        assert world.entry is not None
        assert world.entry.status is status
        await asyncio.sleep(100)
        assert world.entry.status is status
        world.reconciler.wish(Status.UP)
        await settle()
        assert world.entry.status is Status.UP

    play(World(), story)


def test_a_wish_during_an_outage_or_a_request_is_not_lost() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(0.5)
        world.reconciler.wish(Status.DRAINING)
        await asyncio.sleep(3)
        assert world.registry.log == ["register up", "register draining"]

    registry = Scripted()

    async def slow(_: Instance) -> None:
        await asyncio.sleep(1)

    registry.behave = {"register": slow}
    play(World(registry), story)


def test_made_resolves_once_and_with_the_first() -> None:
    async def story(world: World) -> None:
        await settle()
        first = world.reconciler.made.result(0)
        world.reconciler.wish(Status.DRAINING)
        world.store.instances.clear()
        await asyncio.sleep(30)
        assert world.reconciler.made.result(0) is first

    play(World(), story)


def test_a_bug_of_a_backend_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    async def register(_: Instance) -> None:
        tries.append(1)
        if len(tries) < 10:
            raise KeyError("surprise")

    async def story(world: World) -> None:
        await asyncio.sleep(60)
        assert world.reconciler.made.done()

    registry = Scripted()

    async def heartbeat(_: Instance) -> bool:
        return len(tries) >= 10

    registry.behave = {"register": register, "heartbeat": heartbeat}
    play(World(registry), story)
    assert [bool(record.exc_info) for record in caplog.records if record.levelname != "INFO"] == [True, False]


@pytest.mark.parametrize(
    "problem",
    [OSError(101, "Network is unreachable"), UnicodeError("label too long")],
    ids=lambda problem: type(problem).__name__,
)
def test_no_route_to_the_registry(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_routes: object) -> str:
        raise problem

    async def story(world: World) -> None:
        await asyncio.sleep(10)
        assert "Network is unreachable" in world.reconciler.problem or "label too long" in world.reconciler.problem
        assert world.reconciler.desired is None
        monkeypatch.undo()
        await asyncio.sleep(BACKOFF_CAP)
        assert world.entry is not None

    monkeypatch.setattr("meshlib.discovery.registration.source_address", unreachable)
    play(World(), story)


def test_a_loopback_address_for_a_registry_elsewhere_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async def story(_: World) -> None:
        await settle()

    registry = Scripted()
    registry.routes = (("10.0.0.1", 8500),)
    world = play(World(registry, advertise="127.0.0.1:8080"), story)
    assert world.reconciler.made.done()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        suspicious("127.0.0.1", registry.routes)
    ]


# -- stopping


def test_stopping_in_the_middle_of_a_register_deregisters() -> None:
    async def story(_: World) -> None:
        await settle()

    registry = Scripted()

    async def hang(_: Instance) -> None:
        await asyncio.Event().wait()

    registry.behave = {"register": hang}
    play(World(registry), story)
    assert registry.log == ["register up", "deregister up"]


def test_stopping_before_anything_was_sent_sends_nothing() -> None:
    async def story(world: World) -> None:
        await settle()
        assert world.reconciler.desired is None

    play(World(RegistryUnavailable("connection refused")), story)


def test_stopping_while_the_registry_hangs_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        await settle()
        start = world.clock()
        await world.reconciler.stop()
        assert world.clock() - start == pytest.approx(3.0)

    registry = Scripted()

    async def hang(_: Instance) -> None:
        await asyncio.Event().wait()

    registry.behave = {"deregister": hang}
    play(World(registry, registry_timeout=3.0, ttl=15.0), story)
    assert "could not be deregistered, it expires within 15 s: time-out" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("problem", [RegistryUnavailable("down"), KeyError("bug"), RuntimeError("shut down")])
def test_stopping_while_the_registry_fails_is_a_warning(problem: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def story(_: World) -> None:
        await settle()

    registry = Scripted()

    async def fail(_: Instance) -> None:
        raise problem

    registry.behave = {"deregister": fail}
    play(World(registry), story)
    assert "could not be deregistered" in caplog.records[-1].getMessage()


def test_no_heartbeat_after_the_stop() -> None:
    async def story(world: World) -> None:
        await settle()
        await world.reconciler.stop()
        await asyncio.sleep(100)
        assert world.entry is None

    play(World(), story)


# -- what is registered


def test_everything_that_is_set_is_registered() -> None:
    settings = Settings(service="orders", namespace="shop.prod", scheme="https", version="1.4", zone="eu-1a", weight=7,
                        labels="team=pay,track=canary")  # fmt: skip
    made = describe(settings, "2001:db8::1", 8443, generation="g", status=Status.DRAINING)
    assert made == Instance(
        "orders", "orders-2001-db8--1-8443", "2001:db8::1", 8443, "https", "1.4", "eu-1a", 7,
        {"team": "pay", "track": "canary"}, Status.DRAINING, "g", "shop.prod",
    )  # fmt: skip


def test_an_id_that_is_set_is_used() -> None:
    assert describe(Settings(service="orders", instance_id="orders-1"), "10.0.0.5", 80, generation="").id == "orders-1"


def test_a_restart_has_the_same_id_and_another_generation() -> None:
    settings = Settings(service="orders")
    one, other = (describe(settings, "10.0.0.5", 80, generation=each) for each in ("g1", "g2"))
    assert one.id == other.id
    assert one.key != other.key
