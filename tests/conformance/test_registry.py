"""One suite for every Registry."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from meshlib.backends import Backend
from meshlib.model import ServiceUrl
from tests.conformance.conftest import Environment
from tests.conformance.watching import Watching, ids

pytestmark = pytest.mark.anyio


async def listed(backend: Backend, env: Environment, wanted: list[str]) -> bool:
    for _ in range(200):
        if ids(await backend.registry.fetch(env.service)) == wanted:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_unknown_service_is_empty(backend: Backend, env: Environment) -> None:
    assert (await backend.registry.fetch(env.service)).instances == ()


async def test_every_attribute_survives(backend: Backend, other: Backend, env: Environment) -> None:
    instance = env.instance(
        "orders-8443", host="10.1.2.3", port=8443, scheme="https", version="1.4.2", zone="eu-1a", weight=7,
        labels={"team": "pay", "track": "canary"}, status="draining", generation="g1",
    )  # fmt: skip
    await backend.registry.register(instance, 30)
    await backend.registry.heartbeat(instance, 30)
    assert await listed(other, env, ["orders-8443"])
    assert (await other.registry.fetch(env.service)).instances == (instance,)


async def test_ipv6(backend: Backend, env: Environment) -> None:
    instance = env.instance(host="2001:db8::1")
    await backend.registry.register(instance, 30)
    assert await listed(backend, env, ["a"])
    assert (await backend.registry.fetch(env.service)).instances[0].netloc == "[2001:db8::1]:8080"


async def test_maintenance_is_listed_as_such(backend: Backend, env: Environment) -> None:
    up, down = env.instance(), env.instance(status="maintenance")
    await backend.registry.register(up, 30)
    assert await listed(backend, env, ["a"])
    await backend.registry.register(down, 30)
    async with Watching(backend.registry.watch(env.service)) as watching:
        listing = await watching.until(lambda listing: [one.status for one in listing.instances] == [down.status])
    assert listing.instances == (down,)


async def test_registering_again_replaces(backend: Backend, env: Environment) -> None:
    await backend.registry.register(env.instance(version="1"), 30)
    await backend.registry.register(env.instance(version="2"), 30)
    async with Watching(backend.registry.watch(env.service)) as watching:  # an agent of Consul's tells its servers later
        await watching.until(lambda listing: [(one.id, one.version) for one in listing.instances] == [("a", "2")])


async def test_unique_and_ordered(backend: Backend, env: Environment) -> None:
    for name in ("c", "a", "b", "a"):
        await backend.registry.register(env.instance(name), 30)
    assert await listed(backend, env, ["a", "b", "c"])


async def test_deregister(backend: Backend, env: Environment) -> None:
    await backend.registry.register(env.instance("a"), 30)
    await backend.registry.register(env.instance("b"), 30)
    await backend.registry.deregister(env.instance("a"))
    assert await listed(backend, env, ["b"])
    await backend.registry.deregister(env.instance("a"))


async def test_heartbeat_says_whether_it_is_registered(backend: Backend, other: Backend, env: Environment) -> None:
    instance = env.instance()
    assert await backend.registry.heartbeat(instance, 30) is False
    await backend.registry.register(instance, 30)
    assert await backend.registry.heartbeat(instance, 30) is True
    await other.registry.deregister(instance)
    assert await backend.registry.heartbeat(instance, 30) is False


async def test_heartbeat_sees_a_changed_registration(backend: Backend, other: Backend, env: Environment) -> None:
    await backend.registry.register(env.instance(version="1"), 30)
    await other.registry.register(env.instance(version="2"), 30)
    assert await backend.registry.heartbeat(env.instance(version="1"), 30) is False


async def test_heartbeats_keep_it_and_silence_loses_it(backend: Backend, other: Backend, env: Environment) -> None:
    """Who comes later than its ttl, because the machine is slow, has lost it, and begins again."""
    kept, lost, clock = env.instance("kept"), env.instance("lost"), asyncio.get_running_loop().time
    await other.registry.register(lost, 2)
    beats, said = 0, 0.0
    async with asyncio.timeout(60):
        while beats < 8 or ids(await backend.registry.fetch(env.service)) != ["kept"]:
            before, said = said, clock()
            if await backend.registry.heartbeat(kept, 3):
                beats += 1
            else:
                assert clock() - before > 3
                said, beats = clock(), 0
                await backend.registry.register(kept, 3)
            await asyncio.sleep(0.5)


async def test_services(backend: Backend, env: Environment) -> None:
    await backend.registry.register(env.instance(), 30)
    assert await listed(backend, env, ["a"])
    assert env.service.service in await backend.registry.services("")
    assert env.service.service not in await backend.registry.services("shop.prod")


async def test_namespaces_are_apart(backend: Backend, env: Environment) -> None:
    await backend.registry.register(env.instance("plain"), 30)
    await backend.registry.register(env.instance("spaced", namespace="shop.prod"), 30)
    assert await listed(backend, env, ["plain"])
    async with Watching(backend.registry.watch(ServiceUrl(env.service.service, "shop.prod"))) as watching:
        spaced = await watching.until(lambda listing: bool(listing.instances))
    assert [(one.id, one.namespace) for one in spaced.instances] == [("spaced", "shop.prod")]
    assert await listed(backend, env, ["plain"])


async def test_watch_starts_with_the_present(backend: Backend, env: Environment) -> None:
    async with Watching(backend.registry.watch(env.service)) as watching:
        assert ids(await watching.until(lambda _: True)) == []


async def test_watch_sees_every_kind_of_change(backend: Backend, other: Backend, env: Environment) -> None:
    async with Watching(backend.registry.watch(env.service)) as watching:
        await other.registry.register(env.instance("a"), 30)
        await watching.until(lambda listing: ids(listing) == ["a"])
        await other.registry.register(env.instance("b", version="1"), 30)
        await watching.until(lambda listing: ids(listing) == ["a", "b"])
        await other.registry.register(env.instance("b", version="2"), 30)
        await watching.until(lambda listing: [one.version for one in listing.instances] == ["", "2"])
        await other.registry.deregister(env.instance("a"))
        await watching.until(lambda listing: ids(listing) == ["b"])


async def test_watch_sees_an_expiry(backend: Backend, other: Backend, env: Environment) -> None:
    async with Watching(backend.registry.watch(env.service)) as watching:
        for _ in range(10):
            await other.registry.register(env.instance(), 1)
            with suppress(TimeoutError):  # it has expired before we looked
                await watching.until(lambda listing: ids(listing) == ["a"], within=2)
                break
        await watching.until(lambda listing: ids(listing) == [])
    assert ["a"] in map(ids, watching.seen)


async def test_watch_is_not_woken_by_heartbeats_only(backend: Backend, other: Backend, env: Environment) -> None:
    await other.registry.register(env.instance(), 30)
    async with Watching(backend.registry.watch(env.service)) as watching:
        await watching.until(lambda listing: ids(listing) == ["a"])
        await asyncio.sleep(0.3)
        before, begun = len(watching.seen), asyncio.get_running_loop().time()
        for _ in range(20):
            await other.registry.heartbeat(env.instance(), 30)
        await asyncio.sleep(0.3)
        proofs = asyncio.get_running_loop().time() - begun  # of life, one a second
        assert len(watching.seen) - before <= 2 + proofs
