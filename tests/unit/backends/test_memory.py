"""The registry in this process: what the conformance suite does not see."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from meshlib.backends import memory, open_backend
from meshlib.backends.base import CONFIRM
from meshlib.errors import RegistryUnavailable
from meshlib.model import ServiceUrl
from meshlib.settings import Settings
from meshlib.testing import FakeClock, run_virtual
from tests.unit.discovery.snapshots import instance

ORDERS = ServiceUrl("orders")


def made() -> tuple[FakeClock, memory.Store, memory.MemoryRegistry]:
    clock = FakeClock()
    store = memory.Store(clock=clock)
    return clock, store, memory.MemoryRegistry(store)


def test_a_watch_confirms_and_sees_a_lease_end() -> None:
    clock, store, registry = made()
    seen: list[tuple[float, list[str]]] = []

    async def watch() -> None:
        async for listing in registry.watch(ORDERS):
            seen.append((clock() - 1000, [one.id for one in listing.instances]))

    async def main() -> None:
        await registry.register(instance("a"), 20.0)
        task = asyncio.create_task(watch())
        await asyncio.sleep(60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not store.watchers, "the watch is closed at once, not when it is collected"

    run_virtual(main(), clock=clock)
    times = [at for at, _ in seen]
    assert max(b - a for a, b in itertools.pairwise(times)) <= CONFIRM
    assert next(at for at, names in seen if not names) == pytest.approx(20.0)
    assert len(seen) < 10


@pytest.mark.parametrize("kind", ["registry", "kv"])
def test_closing_a_watch_leaves_nothing(kind: str) -> None:
    clock, store, registry = made()

    async def main() -> None:
        watch = registry.watch(ORDERS) if kind == "registry" else memory.MemoryKeyValue(store).watch("a/")
        await anext(watch)
        assert len(store.watchers) == 1
        await watch.aclose()  # type: ignore[attr-defined]
        assert not store.watchers

    run_virtual(main(), clock=clock)


def test_down_and_up() -> None:
    clock, store, registry = made()

    async def main() -> None:
        await registry.register(instance("a"), 20.0)
        watch = registry.watch(ORDERS)
        await anext(watch)
        asyncio.get_running_loop().call_later(1, store.set_down, True)
        with pytest.raises(RegistryUnavailable):
            await anext(watch)
        assert clock() == 1001.0
        for work in (registry.fetch(ORDERS), registry.heartbeat(instance("a"), 1), registry.services("")):
            with pytest.raises(RegistryUnavailable):
                await work
        store.set_down(False)
        assert len((await registry.fetch(ORDERS)).instances) == 1

    run_virtual(main(), clock=clock)


def test_many_threads_with_short_leases() -> None:
    store = memory.Store()
    registry, kv = memory.MemoryRegistry(store), memory.MemoryKeyValue(store)
    problems: list[BaseException] = []

    def work(name: str) -> None:
        async def main() -> None:
            for number in range(200):
                await registry.register(instance(f"{name}-{number}"), 0.0)
                await kv.get("x")
                store.until_expiry()
                await registry.fetch(ORDERS)

        try:
            asyncio.run(main())
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_child_process_forgets_the_parents_loops_and_lock(tmp_path: object) -> None:
    store = memory.store(f"fork-{tmp_path}")
    loop = asyncio.new_event_loop()
    store.watchers.add((loop, asyncio.Event()))
    thread = threading.Thread(target=store.lock.acquire)
    thread.start()
    thread.join()
    memory._forked()
    assert not store.watchers
    assert store.lock.acquire(blocking=False)
    loop.close()


def test_stores_have_names() -> None:
    one, same, other = (open_backend(Settings(registry=f"memory://{name}")) for name in ("a", "a", "b"))  # type: ignore[arg-type]
    assert one.registry.store is same.registry.store is not other.registry.store  # type: ignore[attr-defined]
