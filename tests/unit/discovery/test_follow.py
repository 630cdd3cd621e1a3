"""Following a service through everything that may happen to its registry, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from meshlib.backends import Listing
from meshlib.backends.memory import MemoryRegistry, Store
from meshlib.balance.endpoint import Endpoint
from meshlib.balance.fleet import Fleet
from meshlib.discovery.follow import BACKOFF_CAP, SAVE_EVERY, backoff
from meshlib.discovery.merge import Known
from meshlib.discovery.probe import Probes
from meshlib.discovery.view import View
from meshlib.errors import RegistryDenied, RegistryUnavailable, StoreError
from meshlib.flow import Wait
from meshlib.model import Snapshot
from meshlib.testing import run_virtual
from tests.unit.discovery.scripted import ORDERS, WALL, Scripted, World
from tests.unit.discovery.snapshots import instance, snapshot

DOWN = RegistryUnavailable("connection refused")


def listed(*names: str, revision: str = "") -> Listing:
    return Listing.of([instance(name) for name in names], revision)


def play(world: World, story: Callable[[World], Awaitable[None]]) -> World:
    """Run ``story`` while the view is followed; afterwards nothing of it is left."""

    async def main() -> None:
        world.view.attend()
        try:
            await story(world)
        finally:
            await world.stop()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left

    run_virtual(main(), clock=world.clock)
    if isinstance(world.registry, Scripted):
        assert world.registry.closed == world.registry.opened
    return world


async def settle() -> None:
    """Let all that is due now happen."""
    await asyncio.sleep(1e-3)


# -- lists and errors


def test_the_first_listing() -> None:
    async def story(world: World) -> None:
        wait = world.view.attend()
        assert wait is not None
        await settle()
        assert world.shown == "a b"
        assert (world.view.live, world.view.problem, wait.future.done()) == (True, "", True)
        assert world.view.snapshot is not None
        assert (world.view.snapshot.confirmed, world.view.snapshot.revision) == (pytest.approx(WALL), "7")
        assert world.view.attend() is None
        assert len(world.followers) == 1

    play(World(Scripted([listed("b", "a", revision="7")])), story)


def test_an_error_keeps_the_list_and_is_visible(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        await settle()
        assert (world.shown, world.view.live) == ("a b", True)
        await asyncio.sleep(30)
        assert (world.shown, world.view.live, world.view.problem) == ("a b", False, "connection refused")
        assert world.view.snapshot is not None
        assert world.view.snapshot.age(world.wall()) >= 20
        await asyncio.sleep(3600)
        assert world.shown == "a b"

    watches: list[list[Any]] = [[listed("a", "b"), 5.0, DOWN]] + [[DOWN]] * 4000
    play(World(Scripted(*watches)), story)
    assert [record.getMessage() for record in caplog.records] == [
        "orders: the registry is lost, going on with what is known, trying again: connection refused"
    ]


def test_recovery_is_seen_within_the_backoff_cap() -> None:
    async def story(world: World) -> None:
        await settle()
        store = world.registry.store
        store.set_down(True)
        await asyncio.sleep(500)
        assert (world.shown, world.view.live) == ("a", False)
        store.set_down(False)
        await world.registry.register(instance("b"), 1e9)
        await asyncio.sleep(BACKOFF_CAP + 0.01)
        assert (world.shown, world.view.live, world.view.problem) == ("a b", True, "")

    world = World(None)
    store = Store(clock=world.clock)
    store.instances["", "orders", "a"] = (instance("a"), 1e12)
    world.registry = MemoryRegistry(store)
    play(world, story)
    assert not store.watchers


def test_backoff() -> None:
    assert [backoff(failures, 1.0) for failures in (1, 2, 3, 4, 5, 10**6)] == [0.2, 0.4, 0.8, 0.9, 0.9, 0.9]
    assert backoff(1, 0.25) == 0.05, "the first one is jittered, too"


def test_attempts_are_spread() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(10)
        gaps = [round(b - a, 3) for a, b in zip(world.registry.at, world.registry.at[1:], strict=False)]
        assert gaps[:6] == [0.2, 0.4, 0.8, 0.9, 0.9, 0.9]

    play(World(Scripted(*[[DOWN]] * 100)), story)


def test_a_watch_that_breaks_as_soon_as_it_has_answered_is_no_recovery() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(60)
        assert world.registry.opened < 80

    play(World(Scripted(*[[listed("a"), DOWN]] * 1000)), story)


def test_a_watch_that_ends_is_started_again() -> None:
    async def story(world: World) -> None:
        await settle()
        assert world.view.problem == "the watch ended"
        await asyncio.sleep(5)
        assert (world.shown, world.view.live) == ("a b", True)

    play(World(Scripted([listed("a"), "end"], [listed("a", "b")])), story)


def test_a_bug_of_a_backend_does_not_end_discovery(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        await settle()
        assert world.view.problem == "internal error: KeyError('surprise')"
        await asyncio.sleep(60)
        assert (world.shown, world.view.live) == ("a", True)

    play(World(Scripted(*[[KeyError("surprise")]] * 20, [listed("a")])), story)
    assert [bool(record.exc_info) for record in caplog.records] == [True, False], "said once, with its traceback"


def test_no_registry_at_all() -> None:
    async def story(world: World) -> None:
        await settle()
        assert world.view.problem == "connection refused"
        world.registry = Scripted([listed("a")])
        await asyncio.sleep(BACKOFF_CAP)
        assert world.shown == "a"

    play(World(DOWN), story)


def test_another_kind_of_error_is_said() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(100)
        assert world.view.problem == "bad token"

    watches: list[list[Any]] = [[RegistryUnavailable(f"{number} refused")] for number in range(5)]
    world = World(Scripted(*watches, *[[RegistryDenied("bad token")]] * 500))
    with_log: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: with_log.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("meshlib.discovery.follow").addHandler(handler)
    try:
        play(world, story)
    finally:
        logging.getLogger("meshlib.discovery.follow").removeHandler(handler)
    assert [text.rpartition(": ")[2] for text in with_log] == [
        f"{why}; is MESH_REGISTRY=memory:// (from code) right?" for why in ("0 refused", "bad token")
    ]


# -- the cold start


def test_the_first_error_turns_to_the_disk_at_once() -> None:
    async def story(world: World) -> None:
        wait = world.view.attend()
        assert wait is not None
        await settle()
        assert (world.shown, wait.future.done()) == ("x", True)
        assert world.view.snapshot is not None
        assert (world.view.snapshot.source, world.view.live) == ("disk", False)
        assert world.view.missing() == "none of 1 instances may be called (as of 100 s ago: connection refused)"

    play(World(Scripted(*[[DOWN]] * 50), disk=snapshot(instance("x"), confirmed=WALL - 100)), story)


def test_a_silent_registry_has_its_grace_then_the_disk() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(0.09)
        assert world.shown is None
        await asyncio.sleep(0.02)
        assert world.shown == "x"

    play(World(Scripted([]), disk=snapshot(instance("x"))), story)


def test_a_registry_that_answers_in_its_grace_makes_the_disk_superfluous() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(5)
        assert (world.shown, world.disk.loads) == ("a", 0)

    play(World(Scripted([0.05, listed("a")]), disk=snapshot(instance("x"))), story)


def test_callers_go_on_with_nothing_after_the_time_out() -> None:
    async def story(world: World) -> None:
        wait = world.view.attend()
        assert wait is not None
        await asyncio.sleep(2.99)
        assert not wait.future.done()
        await asyncio.sleep(0.02)
        assert wait.future.done()
        assert world.view.attend() is None
        assert world.view.missing() == "no list of instances yet: the registry has not answered"

    play(World(Scripted([])), story)


def test_the_disk_is_replaced_by_the_registry() -> None:
    async def story(world: World) -> None:
        await settle()
        assert world.shown == "w x y z?"
        await asyncio.sleep(BACKOFF_CAP)
        assert world.shown == "x y z?"
        assert world.view.snapshot is not None
        assert (world.view.snapshot.source, world.view.live) == ("registry", True)

    disk = snapshot(*map(instance, "wxyz"), suspects={"z"}, confirmed=WALL - 100)
    play(World(Scripted([DOWN], [listed("x", "y")]), disk=disk), story)


def test_an_empty_registry_after_a_cold_start_wipes_nothing() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(1)
        assert world.shown == "x? y?"

    disk = snapshot(instance("x"), instance("y"))
    play(World(Scripted([DOWN], [listed()]), disk=disk), story)


def test_an_empty_list_that_comes_while_the_disk_is_read_wipes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(0.5)
        return work(*arguments, **options)

    async def story(world: World) -> None:
        monkeypatch.setattr(asyncio, "to_thread", slowly)
        await asyncio.sleep(1.0)
        assert (world.shown, world.disk.loads) == ("x? y?", 1), "nobody forgets what was known for a loss of state"

    play(World(Scripted([0.3, listed()]), disk=snapshot(instance("x"), instance("y"))), story)


@pytest.mark.parametrize("trouble", [StoreError("not ours"), OSError("gone"), KeyError("bug")])
def test_a_disk_that_cannot_be_used(trouble: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.disk.trouble = trouble
        await asyncio.sleep(30)
        assert world.shown is None
        assert world.view.first.done()
        world.registry.watches[:] = [[listed("a"), *[30.0, listed("a")] * 40]]
        await asyncio.sleep(1000)
        assert (world.shown, world.view.live) == ("a", True)

    world = play(World(Scripted(*[[DOWN]] * 100), disk=snapshot(instance("x")), watch_idle=1e6), story)
    assert world.disk.loads == 1
    assert len(world.disk.saved) > 20
    texts = [record.getMessage() for record in caplog.records]
    assert sum("no disk snapshot" in text for text in texts) == 1
    assert sum("cannot be written" in text for text in texts) == 1


def test_a_disk_that_hangs_does_not_keep_it_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    repaired = threading.Event()

    async def main() -> None:
        world = World(Scripted([DOWN], [listed("a")]), cold_start_timeout=0.05)
        monkeypatch.setattr(world.disk, "load", lambda _service: repaired.wait(60) and None)
        world.view.attend()
        async with asyncio.timeout(30):
            while not world.view.live:
                await asyncio.sleep(0.01)
        assert (world.shown, repaired.is_set()) == ("a", False)
        repaired.set()
        await world.stop()

    asyncio.run(main())


# -- suspects


def test_suspects_are_probed_and_the_dead_dropped() -> None:
    async def story(world: World) -> None:
        await settle()
        world.dead = {"b"}
        await asyncio.sleep(2)
        assert world.shown == "a? c?"
        assert [name for _, name in world.probed] == ["a", "b", "c"]
        assert world.view.known is not None
        assert set(world.view.known.gone) == {"b"}
        await asyncio.sleep(60)
        assert world.shown == "a? c?", "they answer"
        assert 10 <= sum(name == "a" for _, name in world.probed) <= 25
        world.dead = {"a"}
        await asyncio.sleep(5)
        assert world.shown == "c?"
        assert [each.instance.id for each in world.view.fleet.tiers.usable] == ["c"]

    play(World(Scripted([listed("a", "b", "c"), 1.0, listed()])), story)


def test_suspects_of_the_disk_are_probed() -> None:
    async def story(world: World) -> None:
        world.dead = {"x"}
        await asyncio.sleep(1)
        assert world.shown == "y"

    disk = snapshot(instance("x"), instance("y"), suspects={"x"})
    play(World(Scripted(*[[DOWN]] * 50), disk=disk), story)


def test_suspects_that_come_back_are_not_probed_any_more() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(10)
        assert world.shown == "a b"
        probes = len(world.probed)
        await asyncio.sleep(100)
        assert len(world.probed) == probes

    play(World(Scripted([listed("a", "b"), 1.0, listed(), 3.0, listed("a", "b")])), story)


def test_a_probe_that_ends_late_does_not_drop_who_is_listed_again() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(60)
        assert world.shown == "a b"

    world = World(Scripted([listed("a", "b"), 1.0, listed(), 1.0, listed("a", "b")]))

    async def slow(_: object) -> bool:
        await asyncio.sleep(3)
        return False

    object.__setattr__(world.around, "probes", Probes(slow, slow))
    play(world, story)


def test_a_probe_that_has_a_bug_does_not_end_the_probing() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(60)
        assert world.shown == ""

    world = World(Scripted([listed("a"), 1.0, listed()]))
    tries = []

    async def reach(_: object) -> bool:
        tries.append(1)
        if len(tries) == 1:
            raise ZeroDivisionError
        return False

    object.__setattr__(world.around, "probes", Probes(reach, reach))
    play(world, story)


def test_suspects_go_at_the_hard_age() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(95)
        assert world.shown == "a? b?"
        await asyncio.sleep(10)
        assert world.shown == ""

    watch = [listed("a", "b"), 1.0, *[listed(), 5.0] * 30]
    play(World(Scripted(watch), snapshot_max_age=100.0), story)


# -- saving


def test_a_change_is_saved_at_once_and_then_every_30_s() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(100)
        times = [round(at) for at, _, _ in world.disk.saved]
        assert times == [0, 31, 62, 63, 94]

    watch = [listed("a"), *[10.0, listed("a")] * 6, 2.0, listed("a", "b"), *[10.0, listed("a", "b")] * 6]
    world = play(World(Scripted(watch)), story)
    assert len(world.disk.saved[-1][1].instances) == 2


def test_a_dropped_suspect_is_saved_as_a_tombstone() -> None:
    async def story(world: World) -> None:
        world.dead = {"a"}
        await asyncio.sleep(10)

    world = play(World(Scripted([listed("a"), 1.0, listed()])), story)
    assert set(world.disk.saved[-1][2]) == {"a"}


def test_what_is_stale_is_not_saved_again() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(500)
        assert len(world.disk.saved) == 1

    play(World(Scripted([listed("a"), 1.0, DOWN], *[[DOWN]] * 1000)), story)


def test_what_came_from_the_disk_is_not_saved() -> None:
    async def story(world: World) -> None:
        world.dead = {"x"}
        await asyncio.sleep(200)
        assert (world.shown, world.disk.saved) == ("y", [])

    disk = snapshot(instance("x"), instance("y"), suspects={"x"})
    play(World(Scripted(*[[DOWN]] * 1000), disk=disk), story)


def test_a_service_that_flaps_does_not_keep_the_disk_busy() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(20)
        assert len(world.disk.saved) <= 12
        assert world.view.snapshot is not None
        assert world.disk.saved[-1][1].instances == world.view.snapshot.instances

    watch = [each for number in range(1000) for each in (listed("a", "b", f"n{number}"), 0.01)]
    play(World(Scripted(watch)), story)


def test_a_crash_of_saving_does_not_end_it() -> None:
    async def story(world: World) -> None:
        world.disk.trouble = KeyError("bug")
        await asyncio.sleep(40)
        world.disk.trouble = None
        await asyncio.sleep(2 * SAVE_EVERY)
        assert len(world.disk.saved) >= 3

    play(World(Scripted([listed("a"), *[10.0, listed("a")] * 20])), story)


# -- idleness and the end


def confirmed(every: float = 15.0, times: int = 1000) -> list[Any]:
    return [listed("a"), *[every, listed("a")] * times]


def test_a_view_that_nobody_reads_is_dropped_and_followed_again_on_the_next_read(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(590)
        assert world.view.followed
        await asyncio.sleep(30)
        assert (world.view.followed, world.view.live, world.shown) == (False, False, "a")
        assert world.registry.closed == 1
        assert "not watched" in world.view.missing()
        await asyncio.sleep(3600)
        waiting = world.view.attend()
        assert waiting is not None, "an hour old: its addresses may have been given to others"
        await asyncio.sleep(0.5)
        assert waiting.future.done(), "but it is better than nothing"
        await settle()
        assert (world.view.followed, world.view.live, world.shown, world.registry.opened) == (True, True, "a b", 2)

    play(World(Scripted(confirmed(), [listed("a", "b")])), story)
    assert not caplog.records, "being idle is nothing to warn of"


def test_a_view_that_is_read_is_kept() -> None:
    async def story(world: World) -> None:
        for _ in range(100):
            await asyncio.sleep(500)
            world.view.attend()
        assert (world.registry.opened, world.view.live) == (1, True)

    play(World(Scripted(confirmed(times=10_000))), story)


def test_an_idle_view_is_dropped_while_the_registry_is_down() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(610)
        assert not world.view.followed

    play(World(Scripted(*[[DOWN]] * 1000)), story)


def test_an_idle_view_holds_no_connections_and_is_not_probed() -> None:
    async def story(world: World) -> None:
        drained: list[Endpoint] = []
        world.view.fleet = Fleet(ORDERS, on_drained=drained.append)
        await settle()
        first, second = world.view.fleet.tiers.prime
        busy = object()
        second.in_flight.add(busy)
        world.view.fleet.eject(first)
        await asyncio.sleep(620)
        assert not world.view.followed
        assert drained == [first]
        assert world.view.fleet.tiers.prime == (first, second)

    play(World(Scripted([listed("a", "b"), *[15.0, listed("a", "b")] * 50])), story)


def test_a_read_while_it_is_being_dropped_is_not_lost() -> None:
    """The reader still sees it followed; the follower has already decided to leave."""

    async def story(world: World) -> None:
        async def leaving(_: object) -> bool:
            try:
                await asyncio.Event().wait()
            finally:
                world.view.attend()
                assert len(world.followers) == 1
            return True

        object.__setattr__(world.around, "probes", Probes(leaving, leaving))
        await asyncio.sleep(700)
        assert len(world.followers) == 2
        assert (world.view.followed, world.view.live) == (True, True)

    watch = [listed("a"), 1.0, listed(), *[15.0, listed()] * 50]
    play(World(Scripted(watch, confirmed())), story)


def test_callers_wait_again_where_the_last_attempt_brought_nothing() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(700)
        assert not world.view.followed
        world.registry.watches[:] = [[0.05, listed("a")]]
        wait = world.view.attend()
        assert wait is not None
        assert not wait.future.done()
        await asyncio.sleep(0.06)
        assert wait.future.done()
        assert world.shown == "a"

    play(World(Scripted(*[[DOWN]] * 1000)), story)


def test_stopping_lets_waiting_callers_go() -> None:
    async def main() -> None:
        world = World(Scripted([]))
        wait = world.view.attend()
        assert wait is not None
        await settle()
        await world.stop()
        assert wait.future.done()
        assert not world.view.followed

    run_virtual(main())


def test_a_thousand_cycles_leave_nothing_behind() -> None:
    def alive() -> int:
        gc.collect()
        return len(gc.get_objects())

    async def main() -> tuple[int, int]:
        clock = world.clock
        sizes = []
        for number in range(1100):
            world.registry.watches = [[listed("a"), 11.0, listed("a")]]
            world.view.attend()
            await asyncio.sleep(12)
            assert not world.view.followed
            world.followers.clear()
            world.registry.at.clear()
            world.disk.saved.clear()
            if number in (99, 1099):
                sizes.append(alive())
        assert clock() > 1000
        return sizes[0], sizes[1]

    world = World(Scripted(), watch_idle=10.0)
    early, late = run_virtual(main(), clock=world.clock)
    assert late - early < 300


# -- a view by itself


def test_a_fork_keeps_what_is_known_and_follows_afresh() -> None:
    async def story(world: World) -> None:
        await settle()
        endpoint = next(iter(world.view.fleet.tiers.prime))
        world.view.fleet.eject(endpoint)
        world.view.abandon()
        assert (world.shown, world.view.live, world.view.followed) == ("a", False, False)
        assert [each.ejected for each in world.view.fleet.tiers.usable] == [None]
        world.view.attend()
        assert len(world.followers) == 2

    play(World(Scripted([listed("a")], [listed("a")])), story)


def test_a_follower_that_ends_late_ends_no_other() -> None:
    """Its thread was stuck when the mesh was closed, say."""
    view = View(ORDERS, Fleet(ORDERS), lambda view: None, timeout=5.0)
    first = view.begin()
    view.close()
    second = view.begin()
    wait = view.attend()
    view.end(first)
    assert (view.followed, wait is not None and wait.future.done()) == (True, False)
    view.end(second)
    assert (view.followed, wait is not None and wait.future.done()) == (False, True)


def test_another_process_is_noticed_without_a_hook() -> None:
    async def story(world: World) -> None:
        await settle()
        world.view._pid = -1
        world.view.attend()
        assert len(world.followers) == 2

    play(World(Scripted([listed("a")], [listed("a")])), story)


def test_why_nobody_can_be_called() -> None:
    async def story(world: World) -> None:
        await settle()
        assert world.view.missing() == "no instance is registered"
        world.view.live, world.view.problem = False, ""
        await asyncio.sleep(5)
        assert world.view.missing() == "no instance is registered (as of 5 s ago: the registry has not answered)"

    play(World(Scripted([listed()])), story)


def test_whoever_finds_something_known_finds_endpoints() -> None:
    """A caller in another thread looks between the two steps of publishing."""

    class Watched(Fleet):
        def update(self, snapshot: Snapshot) -> None:
            waits.append(view.attend())
            super().update(snapshot)

    waits: list[Wait | None] = []
    view = View(ORDERS, Watched(ORDERS), lambda view: view.begin(), timeout=5.0)
    view.publish(Known(snapshot(instance("a"))))
    assert waits[0] is not None, "it waits until there are endpoints"
    assert view.attend() is None
    assert view.fleet.tiers.usable


def test_the_fleet_is_rebuilt_only_by_changes() -> None:
    async def story(world: World) -> None:
        await settle()
        tiers = world.view.fleet.tiers
        await asyncio.sleep(100)
        assert world.view.fleet.tiers is tiers
        assert world.view.snapshot is not None
        assert world.view.snapshot.confirmed > WALL + 80

    play(World(Scripted(confirmed())), story)
