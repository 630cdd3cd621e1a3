"""Our own entry where siblings keep it too: who lists, who stands by, and who removes it at the end. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from meshlib.discovery import registration
from meshlib.discovery.registration import LOOKS, STUCK, Reconciler
from meshlib.discovery.siblings import Record, Standing
from meshlib.model import Instance, Status
from meshlib.settings import Settings
from meshlib.testing import FakeClock, run_virtual
from tests.unit.discovery.scripted import Scripted

HEARTBEAT = 5.0


class Group:
    """What siblings have in common, without any files: every member has one of these around the same ``Shared``."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self.closed = shared, False

    @property
    def record(self) -> Record:
        return self.shared.record

    def look(self) -> Standing:
        if self.shared.problem is not None:
            raise self.shared.problem
        self.shared.registrar = self.shared.registrar or self
        return Standing(self.record, self.shared.registrar is self, self.shared.clock() - self.record.confirmed)

    def confirm(self) -> None:
        self.shared.change(listed=True, confirmed=self.shared.clock())

    def wish(self, status: Status) -> None:
        self.shared.change(status=status)

    def leave(self) -> bool:
        if self.closed:
            return False
        if self.shared.registrar is self:
            self.shared.registrar = None
        self.shared.others -= 1
        return self.shared.others < 0

    def close(self) -> None:
        self.closed = True


class Shared:
    """``registrar`` is a group of ours, ``"another"`` process, or None; ``others`` live besides ours."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.record = Record("shop-1", "g0", confirmed=clock())
        self.registrar: Any = None
        self.others = 0
        self.problem: Exception | None = None

    def change(self, **fields: Any) -> None:
        self.record = msgspec.structs.replace(self.record, **fields)


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.shared = Shared(self.clock)
        self.registry = Scripted()
        self.reconcilers: list[Reconciler] = []

    async def join(self) -> Reconciler:
        async def registry() -> Any:
            return self.registry

        settings = Settings(registry="consul://10.0.0.1", service="shop", advertise="10.0.0.5:80")
        made = Reconciler(settings, registry, port=80, generation="g1", uniform=lambda: 1.0)
        made.start()
        self.reconcilers.append(made)
        await settle()
        return made


Story = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], World]:
    world = World()
    monkeypatch.setattr(registration, "source_address", lambda _: "10.0.0.5")
    monkeypatch.setattr(registration, "siblings_of", lambda *_: Group(world.shared))

    def played(story: Story) -> World:
        async def main() -> None:
            await story(world)
            for reconciler in world.reconcilers:
                await reconciler.stop()

        run_virtual(main(), clock=world.clock)
        return world

    return played


Play = Callable[[Story], World]


async def settle() -> None:
    await asyncio.sleep(1e-3)


def test_who_stands_by_asks_nothing_of_the_registry_and_is_the_same_instance(play: Play) -> None:
    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        ours = await world.join()
        await asyncio.sleep(HEARTBEAT)
        assert not ours.made.done()
        Group(world.shared).confirm()
        await asyncio.sleep(HEARTBEAT / LOOKS)
        made = ours.made.result(0)
        assert (made.id, made.generation, ours.registrar) == ("shop-1", "g0", False)
        for _ in range(100):
            Group(world.shared).confirm()
            await asyncio.sleep(HEARTBEAT)

    assert play(story).registry.log == []


def test_when_the_registrar_is_gone_it_takes_over_within_a_part_of_a_heartbeat(play: Play) -> None:
    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        ours = await world.join()
        Group(world.shared).confirm()
        await asyncio.sleep(1.7)
        world.shared.registrar, world.shared.others = None, 0
        await asyncio.sleep(HEARTBEAT / LOOKS)
        assert ours.registrar
        assert world.registry.log == ["register up"]
        await asyncio.sleep(HEARTBEAT)
        assert world.registry.log == ["register up", "heartbeat up"]

    assert play(story).registry.log[-1] == "deregister up"


@pytest.mark.parametrize("listed", [True, False])
def test_where_the_registrar_is_stuck_the_others_do_its_work(play: Play, listed: bool) -> None:
    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        world.shared.change(listed=listed)
        ours = await world.join()
        await asyncio.sleep(STUCK * HEARTBEAT)
        assert world.registry.log == []
        await asyncio.sleep(HEARTBEAT / LOOKS)
        assert world.registry.log == ["register up"]
        assert not ours.registrar
        for count in range(2, 10):  # the entry lives for three heartbeats
            await asyncio.sleep(STUCK * HEARTBEAT + HEARTBEAT / LOOKS)
            assert len(world.registry.log) == count

    play(story)


def test_the_negative_control_of_that(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "STUCK", float("inf"))

    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        await world.join()
        await asyncio.sleep(1000)

    assert play(story).registry.log == []


def test_a_wish_is_listed_at_once_whoever_keeps_the_entry(play: Play) -> None:
    async def story(world: World) -> None:
        first, second = await world.join(), await world.join()
        heard: list[Status] = []
        first.on_status = heard.append
        second.on_status = lambda status: pytest.fail(f"it is its own: {status}")
        world.shared.others = 1
        second.wish(Status.DRAINING)
        await settle()
        assert world.registry.log == ["register up", "register draining"]
        await asyncio.sleep(HEARTBEAT)
        assert heard == [Status.DRAINING]
        assert (first.status, second.status) == (Status.DRAINING, Status.DRAINING)
        assert set(world.registry.log[2:]) <= {"register draining", "heartbeat draining"}

    play(story)


def test_a_wish_that_meets_a_heartbeat_is_not_undone_by_it(play: Play) -> None:
    async def story(world: World) -> None:
        _, second = await world.join(), await world.join()
        world.shared.others = 1
        listed: list[Instance] = []

        async def register(instance: Instance) -> None:
            listed[:] = [instance]

        async def heartbeat(instance: Instance) -> bool:
            await asyncio.sleep(0.5)
            return listed == [instance]

        world.registry.behave = {"register": register, "heartbeat": heartbeat}
        await asyncio.sleep(HEARTBEAT)  # the first has looked, and waits for the registry
        second.wish(Status.DRAINING)
        await asyncio.sleep(1.0)
        assert world.registry.log[1:4] == ["heartbeat up", "register draining", "register up"]
        assert [one.status for one in listed] == [Status.DRAINING]

    play(story)


def test_a_wish_outlives_an_outage_and_gives_way_to_a_later_one_of_others(play: Play) -> None:
    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        ours = await world.join()

        async def refuse(_: Instance) -> None:
            raise registration.RegistryError("down")

        world.registry.behave = {"register": refuse, "heartbeat": refuse}
        ours.wish(Status.DRAINING)
        await asyncio.sleep(HEARTBEAT)
        Group(world.shared).wish(Status.MAINTENANCE)
        await asyncio.sleep(HEARTBEAT)
        world.registry.behave = {}
        await asyncio.sleep(HEARTBEAT)
        assert world.registry.log[0] == "register draining"
        assert world.registry.log[-1].endswith(" maintenance")

    play(story)


@pytest.mark.parametrize("registrar", [True, False])
def test_who_leaves_living_siblings_leaves_the_entry_to_them(play: Play, registrar: bool) -> None:
    async def story(world: World) -> None:
        if not registrar:
            world.shared.registrar = "another"
            Group(world.shared).confirm()
        ours = await world.join()
        world.shared.others = 1
        assert not await ours.stop()
        world.reconcilers.clear()

    assert "deregister up" not in play(story).registry.log


def test_the_last_removes_what_others_have_listed(play: Play) -> None:
    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        Group(world.shared).confirm()
        ours = await world.join()
        world.shared.others = 0
        gone: list[Instance] = []

        async def note(instance: Instance) -> None:
            gone.append(instance)

        world.registry.behave = {"deregister": note}
        assert await ours.stop()
        world.reconcilers.clear()
        assert [(one.id, one.generation) for one in gone] == [("shop-1", "g0")]

    assert play(story).registry.log == ["deregister up"]


def test_who_is_stopped_just_as_it_loses_sight_of_the_others_removes_its_entry(play: Play) -> None:
    async def story(world: World) -> None:
        ours, loop = await world.join(), asyncio.get_running_loop()
        group, stopping = ours._group, list[Any]()
        assert isinstance(group, Group)

        def close() -> None:
            if not group.closed:
                group.closed, world.shared.problem = True, None
                stopping.append(asyncio.run_coroutine_threadsafe(ours.stop(), loop))

        group.close = close  # type: ignore[method-assign]
        world.shared.problem = OSError("the disk is gone")
        await asyncio.sleep(HEARTBEAT + 0.1)
        assert await asyncio.wrap_future(stopping[0])
        world.reconcilers.clear()

    assert play(story).registry.log == ["register up", "deregister up"]


def test_nobody_is_told_of_what_never_was_listed(play: Play) -> None:
    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        ours = await world.join()
        world.shared.others = 0
        assert not await ours.stop()
        world.reconcilers.clear()

    assert play(story).registry.log == []


def test_the_last_whose_successor_is_sure_to_come_leaves_the_entry_to_it(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(registration, "successor_expected", lambda port: asked.append(port) or True)

    async def story(world: World) -> None:
        ours = await world.join()
        assert not await ours.stop()
        world.reconcilers.clear()

    assert play(story).registry.log == ["register up"]
    assert asked == [80], "the port that it listens at"


def test_those_who_cannot_meet_list_and_remove_each_for_itself(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.shared.registrar, world.shared.others = "another", 1
        world.shared.problem = OSError(28, "No space left on device")
        ours = await world.join()
        assert ours.registrar
        ours.wish(Status.DRAINING)
        await settle()
        assert await ours.stop()
        world.reconcilers.clear()

    assert play(story).registry.log == ["register up", "register draining", "deregister draining"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("shop: processes that serve the same port cannot see each other")
    assert "No space left on device" in warning
