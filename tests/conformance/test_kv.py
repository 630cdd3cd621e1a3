"""One suite for every KeyValue."""

from __future__ import annotations

import asyncio

import pytest

from meshlib.backends import Backend, KeyValue
from meshlib.errors import CasConflict
from tests.conformance.conftest import Environment
from tests.conformance.watching import Watching

pytestmark = pytest.mark.anyio


@pytest.fixture
def kv(backend: Backend) -> KeyValue:
    assert backend.kv is not None
    return backend.kv


async def test_absent(kv: KeyValue, env: Environment) -> None:
    assert await kv.get(env.prefix + "nothing") is None
    assert await kv.list(env.prefix) == ()
    await kv.delete(env.prefix + "nothing")


@pytest.mark.parametrize("value", [b"", b"plain", bytes(range(256)), b"x" * 100_000])
async def test_bytes_come_back(kv: KeyValue, env: Environment, value: bytes) -> None:
    await kv.put(env.prefix + "a", value)
    entry = await kv.get(env.prefix + "a")
    assert entry is not None
    assert entry.value == value
    assert entry.revision > 0


@pytest.mark.parametrize("name", ["a b", "ümlaut", "a?b&c#d", "deep/er/still", "100%"])
async def test_any_key(kv: KeyValue, env: Environment, name: str) -> None:
    await kv.put(env.prefix + name, b"1")
    assert [entry.key for entry in await kv.list(env.prefix)] == [env.prefix + name]
    await kv.delete(env.prefix + name)
    assert await kv.list(env.prefix) == ()


async def test_list_is_ordered_and_only_the_prefix(kv: KeyValue, env: Environment) -> None:
    for name in ("b", "a", "c/d"):
        await kv.put(env.prefix + name, name.encode())
    await kv.put(env.prefix[:-1] + "-other", b"no")
    assert [entry.key.removeprefix(env.prefix) for entry in await kv.list(env.prefix)] == ["a", "b", "c/d"]


async def test_create_only(kv: KeyValue, env: Environment) -> None:
    await kv.put(env.prefix + "a", b"1", expected=0)
    with pytest.raises(CasConflict):
        await kv.put(env.prefix + "a", b"2", expected=0)
    entry = await kv.get(env.prefix + "a")
    assert entry is not None
    assert entry.value == b"1"


async def test_compare_and_set(kv: KeyValue, env: Environment) -> None:
    await kv.put(env.prefix + "a", b"1")
    first = await kv.get(env.prefix + "a")
    assert first is not None
    await kv.put(env.prefix + "a", b"2", expected=first.revision)
    with pytest.raises(CasConflict):
        await kv.put(env.prefix + "a", b"3", expected=first.revision)
    with pytest.raises(CasConflict):
        await kv.delete(env.prefix + "a", expected=first.revision)
    second = await kv.get(env.prefix + "a")
    assert second is not None
    assert second.value == b"2"
    assert second.revision > first.revision
    await kv.delete(env.prefix + "a", expected=second.revision)
    assert await kv.get(env.prefix + "a") is None
    with pytest.raises(CasConflict):
        await kv.delete(env.prefix + "a", expected=second.revision)


async def test_concurrent_increments_lose_nothing(kv: KeyValue, other: Backend, env: Environment) -> None:
    assert other.kv is not None
    await kv.put(env.prefix + "n", b"0")

    async def increment(store: KeyValue) -> None:
        for _ in range(10):
            while True:
                entry = await store.get(env.prefix + "n")
                assert entry is not None
                try:
                    await store.put(env.prefix + "n", b"%d" % (int(entry.value) + 1), expected=entry.revision)
                    break
                except CasConflict:
                    continue

    await asyncio.gather(increment(kv), increment(other.kv), increment(kv))
    entry = await kv.get(env.prefix + "n")
    assert entry is not None
    assert entry.value == b"30"


async def test_watch(kv: KeyValue, other: Backend, env: Environment) -> None:
    assert other.kv is not None
    async with Watching(kv.watch(env.prefix)) as watching:
        assert await watching.until(lambda _: True) == ()
        await other.kv.put(env.prefix + "a", b"1")
        await watching.until(lambda entries: [entry.value for entry in entries] == [b"1"])
        await other.kv.put(env.prefix + "b", b"2")
        await other.kv.put(env.prefix + "a", b"3")
        await watching.until(lambda entries: [entry.value for entry in entries] == [b"3", b"2"])
        await other.kv.delete(env.prefix + "a")
        await watching.until(lambda entries: [entry.key for entry in entries] == [env.prefix + "b"])


async def test_lock_excludes_and_its_fence_grows(kv: KeyValue, other: Backend, env: Environment) -> None:
    assert other.kv is not None
    first = await kv.lock(env.prefix + "lock", ttl=30)
    assert first is not None
    assert await other.kv.lock(env.prefix + "lock", ttl=30) is None
    assert await first.renew() is True
    await first.release()
    second = await other.kv.lock(env.prefix + "lock", ttl=30)
    assert second is not None
    assert second.fence > first.fence
    assert await first.renew() is False
    await first.release()
    assert await second.renew() is True
    await second.release()


async def test_lock_of_a_silent_holder_is_lost(kv: KeyValue, other: Backend, env: Environment) -> None:
    assert other.kv is not None
    first = await kv.lock(env.prefix + "lock", ttl=env.min_lock_ttl)
    assert first is not None
    second = None
    async with asyncio.timeout(env.min_lock_ttl * 2 + 8):
        while second is None:
            await asyncio.sleep(0.1)
            second = await other.kv.lock(env.prefix + "lock", ttl=30)
    assert await first.renew() is False
    await second.release()
