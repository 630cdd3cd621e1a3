"""Following documents: from a store in memory, on a loop on which waiting takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from meshlib import retry
from meshlib.backends.base import Entry
from meshlib.backends.memory import MemoryKeyValue, Store
from meshlib.client.stack import Stack
from meshlib.errors import RegistryDenied, StoreError
from meshlib.events import Event, Events
from meshlib.flow import compose
from meshlib.governance import follow as module
from meshlib.governance.book import Book
from meshlib.governance.follow import Around, DocumentFollower, begin
from meshlib.governance.office import Office
from meshlib.governance.policies import Policies
from meshlib.governance.store import PolicyStore
from meshlib.model import ServiceUrl
from meshlib.policies.base import Site
from meshlib.settings import Settings
from meshlib.testing import FakeClock, run_virtual

ORDERS = ServiceUrl("orders")
WALL = 1_700_000_000.0


class World:
    """A store, a disk, and processes that follow one document."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.shared = Store(clock=self.clock)
        self.kv: Any = MemoryKeyValue(self.shared)
        self.disk = PolicyStore(path, registry="memory://", clock=self.wall)
        self.opens = 0
        self.policies = Policies(self.kv, wall=self.wall)
        self.tasks: list[asyncio.Task[None]] = []
        self.heard: list[Event] = []

    def wall(self) -> float:
        return WALL + self.clock() - 1000.0

    async def opened(self) -> Any:
        self.opens += 1
        return self.kv

    def process(self, *, follow: bool = True, max_age: float = 1000.0) -> tuple[Book, Stack]:
        events = Events()
        events.listen(self.heard.append)
        book = Book(ORDERS, events=events, max_age=max_age, clock=self.clock)
        around = Around(self.opened, self.disk, self.clock, self.wall, lambda: 1.0)
        begin(book, around)
        stack = Stack(Site(service="orders"), [retry(3)], compose([]))
        book.govern(stack)
        if follow:
            self.tasks.append(asyncio.create_task(DocumentFollower(book, around).run()))
        return book, stack

    @property
    def said(self) -> list[str]:
        found = [f"{event.kind.removeprefix('governance.')} {event.detail['version']}" for event in self.heard]
        self.heard.clear()
        return found


def told(path: Path, story: Callable[[World], Coroutine[Any, Any, None]]) -> World:
    world = World(path)

    async def main() -> None:
        try:
            await story(world)
        finally:
            for task in world.tasks:
                task.cancel()
            await asyncio.gather(*world.tasks, return_exceptions=True)
        assert not world.shared.watchers

    run_virtual(main(), clock=world.clock)
    return world


async def settle() -> None:
    """Let all that is due now happen, what threads do included."""
    await asyncio.sleep(0.01)


def tries(count: int, **fields: Any) -> dict[str, Any]:
    return {"consumer": {"policies": {"retry": {"attempts": count}}}, **fields}


def attempts(*processes: tuple[Book, Stack]) -> list[int | None]:
    return [policy.attempts for _, stack in processes for policy in stack.effective if isinstance(policy, retry)]


def test_a_change_is_in_force_in_every_process_at_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        both = world.process(), world.process()
        await settle()
        assert attempts(*both) == [3, 3]
        assert both[0][0].live
        await world.policies.put("orders", tries(5))
        await settle()
        assert attempts(*both) == [5, 5]
        await world.policies.put("orders-backup", tries(9))
        await world.policies.put("orders", tries(6))
        await settle()
        assert attempts(*both) == [6, 6]
        assert world.said == ["applied 1", "applied 1", "applied 2", "applied 2"]

    told(tmp_path, story)


@pytest.mark.parametrize("bad", [
    b"", b"{", b"\xff", b'{"version": 2, "polices": {}}', b'{"version": 1}', b'{"version": 0}', b'{"a":' * 5_000,
    b'{"version": 2, "consumer": {"policies": {"retry": {"attempts": 0}}}}',
])  # fmt: skip
def test_a_bad_push_keeps_the_last_good_however_long_it_stays(tmp_path: Path, bad: bytes) -> None:
    async def story(world: World) -> None:
        one = world.process(max_age=100.0)
        await world.policies.put("orders", tries(5))
        await settle()
        await world.kv.put("policies/-/orders/current", bad)
        await asyncio.sleep(300)
        assert attempts(one) == [5]
        assert one[0].live
        assert [line.split()[0] for line in world.said] == ["applied", "rejected"]  # once, though it is seen again and again
        await world.policies.put("orders", tries(6, version=7))
        await settle()
        assert (attempts(one), one[0].problem) == ([6], "")

    told(tmp_path, story)


def test_the_store_dies_and_the_same_is_decided_until_the_hard_age(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        one = world.process()
        await world.policies.put("orders", tries(5))
        await settle()
        world.shared.set_down(True)
        await asyncio.sleep(900)
        assert (attempts(one), one[0].live) == ([5], False)
        later = world.process()  # starts with the store dead
        assert attempts(later) == [5]
        assert later[0].source == "disk"
        await asyncio.sleep(102)
        assert attempts(one, later) == [3, 3]
        assert world.said == ["applied 1", "applied 1", "expired 1", "expired 1"]
        world.shared.set_down(False)
        await asyncio.sleep(1)
        assert attempts(one, later) == [5, 5]
        assert [one[0].source, later[0].source] == ["kv", "kv"]

    told(tmp_path, story)


def test_the_negative_control_without_a_disk_a_cold_start_decides_otherwise(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.process()
        await world.policies.put("orders", tries(5))
        await settle()
        world.shared.set_down(True)
        world.disk = PolicyStore(tmp_path / "empty", registry="memory://", clock=world.wall)
        assert attempts(world.process()) == [3]

    told(tmp_path, story)


def test_a_start_with_a_disk_that_is_too_old(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.disk.save(ORDERS, 4, b'{"version": 4, "consumer": {"policies": {"retry": {"attempts": 5}}}}', WALL - 1001)
        one = world.process()
        assert attempts(one) == [3]
        assert world.said == ["expired 4"]
        await world.policies.put("orders", tries(9, version=3))  # an older one is no way back, either
        await settle()
        assert (attempts(one), world.said) == ([3], ["rejected 3"])

    told(tmp_path, story)


@pytest.mark.parametrize("content", [b"{}", b'{"version": 0}', b'{"version": 1, "x": 1}'])
def test_a_disk_that_says_nonsense(tmp_path: Path, content: bytes) -> None:
    async def story(world: World) -> None:
        world.disk.save(ORDERS, 4, content, WALL)
        assert attempts(world.process()) == [3]

    told(tmp_path, story)


def test_a_store_that_lost_its_state_ends_nothing_and_a_lower_version_is_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        one = world.process()
        await world.policies.put("orders", tries(5, version=9))
        await settle()
        world.shared.entries.clear()
        world.shared.wake()
        await settle()
        assert attempts(one) == [5]
        await world.policies.put("orders", tries(1))
        await settle()
        assert attempts(one) == [5]
        assert world.said == ["applied 9", "missing 9", "rejected 1"]
        await world.policies.put("orders", tries(1, version=10))
        await settle()
        assert attempts(one) == [1]

    told(tmp_path, story)


def test_deleting_and_rolling_back_are_new_versions(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        one = world.process()
        await world.policies.put("orders", tries(5))
        await world.policies.delete("orders")
        await settle()
        assert attempts(one) == [3]
        await world.policies.rollback("orders", 1)
        await settle()
        assert attempts(one) == [5]
        assert one[0].floor.version == 3

    told(tmp_path, story)


def test_it_is_kept_on_disk_on_change_and_from_time_to_time(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.process()
        await world.policies.put("orders", tries(5))
        await settle()
        kept = world.disk.load(ORDERS)
        assert kept is not None
        assert (kept.version, kept.confirmed) == (1, pytest.approx(WALL, abs=0.1))
        await asyncio.sleep(2 * module.SAVE_EVERY)
        again = world.disk.load(ORDERS)
        assert again is not None
        assert again.confirmed - kept.confirmed >= module.SAVE_EVERY

    told(tmp_path, story)


def test_a_disk_that_cannot_be_written_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("full")

    async def story(world: World) -> None:
        monkeypatch.setattr(world.disk, "save", full)
        one = world.process()
        for count in (5, 6):
            await world.policies.put("orders", tries(count))
            await settle()
            assert attempts(one) == [count]
        assert "cannot be kept on disk: full" in caplog.text

    told(tmp_path, story)


class Denying:
    """A store whose documents our token may not read."""

    def __init__(self) -> None:
        self.asked = 0

    async def watch(self, prefix: str) -> AsyncIterator[tuple[Entry, ...]]:
        self.asked += 1
        raise RegistryDenied(f"403 for {prefix}")
        yield


def test_where_documents_may_not_be_read_it_asks_seldom_and_says_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        world.kv = denying = Denying()
        world.process()
        await asyncio.sleep(600)
        assert 10 < denying.asked < 30
        assert caplog.text.count("the control store is lost") == 1

    told(tmp_path, story)


class Broken(Denying):
    async def watch(self, prefix: str) -> AsyncIterator[tuple[Entry, ...]]:
        self.asked += 1
        raise KeyError("a bug")
        yield


def test_a_bug_of_a_backend_does_not_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        good, world.kv = world.kv, Broken()
        one = world.process()
        await asyncio.sleep(5)
        world.kv = good
        await world.policies.put("orders", tries(5))
        await asyncio.sleep(1)
        assert attempts(one) == [5]
        assert "internal error: KeyError('a bug')" in caplog.text

    told(tmp_path, story)


def test_without_a_key_value_store_there_is_nothing_to_follow(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.kv = None
        book, _ = world.process()
        await settle()
        assert world.tasks[0].done()
        assert "has no key-value store" in book.problem

    told(tmp_path, story)


def test_whoever_follows_a_document_that_is_followed_stands_by(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        settings = Settings(registry="memory://", state_dir=str(tmp_path))
        office = Office(settings, Events(), world.opened)
        book = office.book(ORDERS)
        first, second = (asyncio.create_task(office.follow(ORDERS)) for _ in range(2))
        world.tasks += [first, second]
        await settle()
        assert (len(world.shared.watchers), book.followed) == (1, True)
        first.cancel()
        await asyncio.sleep(1.1)
        assert (len(world.shared.watchers), book.followed, book.live) == (1, True, True)

    told(tmp_path, story)
