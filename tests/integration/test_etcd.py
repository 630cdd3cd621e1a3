"""The etcd backend against real servers that are killed, wiped, frozen, compacted and cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from meshlib.backends import Backend, Listing, etcd_watch, open_backend
from meshlib.errors import RegistryDenied, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl
from meshlib.security.secret import Secret
from meshlib.settings import RegistryUrl, Settings
from tests.conformance.conftest import PATIENT
from tests.conformance.watching import PROMPT, Watching, held, ids
from tests.servers.base import free_port
from tests.servers.etcd import EtcdServer
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.anyio

ORDERS = ServiceUrl("orders")
KEY = "/meshlib/default/services/orders/"
FAST = "?wait=0.5"


def instance(name: str = "a", **fields: Any) -> Instance:
    return Instance.parse({"service": "orders", "id": name, "host": "10.0.0.5", "port": 8080, **fields})


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    server = EtcdServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no test of a deadline has time."""
    monkeypatch.setattr(etcd_watch, "LEADER", PATIENT)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Backend]:
    if settings.registry_timeout == Settings().registry_timeout:
        settings = settings.changed(registry_timeout=PATIENT)
    backend = open_backend(settings)
    try:
        yield backend
    finally:
        await backend.close()


async def followed(backend: Backend) -> AsyncIterator[Listing]:
    """A watch as discovery keeps one: watched again after every failure."""
    while True:
        with suppress(RegistryUnavailable):
            async for listing in backend.registry.watch(ORDERS):
                yield listing
        await asyncio.sleep(0.05)


@asynccontextmanager
async def swapped(server: EtcdServer, backend: Backend, store: str) -> AsyncIterator[AsyncIterator[Listing]]:
    """A watch that has listed ``a`` and is not open while ``server`` loses everything: the next thing it does is to open on a
    new store, whose revision is ``behind`` or ``ahead`` of the old one's. No connection breaks under it."""
    for number in range(20):
        server.put("elsewhere", str(number))
    await backend.registry.register(instance(), 30)
    watch = aiter(backend.registry.watch(ORDERS))
    assert ids(await anext(watch)) == ["a"]
    server.kill()
    server.wipe()
    server.start()
    for number in range(40 if store == "ahead" else 1):
        server.put("elsewhere", str(number))
    async with asyncio.timeout(30):
        yield watch
    await watch.aclose()  # type: ignore[attr-defined]


async def _listing(backend: Backend) -> Listing | None:
    with suppress(RegistryUnavailable):
        return await backend.registry.fetch(ORDERS)
    return None


class TestSurviving:
    async def test_killed_and_restarted_with_its_data(self, server: EtcdServer) -> None:
        async with opened(server.settings()) as backend:
            await backend.registry.register(instance(), 30)
            async with Watching(followed(backend)) as watching:
                await watching.until(lambda listing: ids(listing) == ["a"])
                server.kill()
                with pytest.raises(RegistryUnavailable):
                    await backend.registry.heartbeat(instance(), 30)
                with pytest.raises(RegistryUnavailable):
                    await backend.registry.fetch(ORDERS)
                server.start()
                assert await backend.registry.heartbeat(instance(), 30) is True
                await backend.registry.register(instance("b"), 30)
                await watching.until(lambda listing: ids(listing) == ["a", "b"])

    async def test_all_state_lost(self, server: EtcdServer) -> None:
        async with opened(server.settings()) as backend:
            await backend.registry.register(instance(), 30)
            async with Watching(followed(backend)) as watching:
                await watching.until(lambda listing: ids(listing) == ["a"])
                server.kill()
                server.wipe()
                server.start()
                assert await backend.registry.heartbeat(instance(), 30) is False
                await watching.until(lambda listing: ids(listing) == [])
                await backend.registry.register(instance(), 30)
                await watching.until(lambda listing: ids(listing) == ["a"])
                assert await backend.registry.heartbeat(instance(), 30) is True

    @pytest.mark.parametrize("store", ["behind", "ahead"])
    async def test_all_state_lost_while_a_watch_is_not_open(self, server: EtcdServer, store: str) -> None:
        async with opened(server.settings(options=FAST)) as backend, swapped(server, backend, store) as watch:
            assert ids(await anext(watch)) == []

    async def test_a_watch_fails_at_once_when_its_connection_is_cut(self, server: EtcdServer) -> None:
        with Proxy("127.0.0.1", server.port) as proxy:
            async with (
                opened(Settings(registry=RegistryUrl.parse(f"etcd://127.0.0.1:{proxy.port}"))) as backend,
                Watching(backend.registry.watch(ORDERS)) as watching,
            ):
                await watching.until(lambda _: True)
                await held(proxy)
                proxy.cut(reset=True)
                with pytest.raises(RegistryUnavailable):
                    await watching.until(lambda _: False, within=PROMPT)
                async with asyncio.timeout(30):
                    while (listing := await _listing(backend)) is None:  # idle connections are cut, too, some as they are taken
                        await asyncio.sleep(0.05)
                assert ids(listing) == []

    async def test_a_frozen_server_is_noticed_and_found_again(self, server: EtcdServer) -> None:
        settings = server.settings(options=FAST, registry_timeout=5.0)
        async with opened(settings) as backend, opened(server.settings()) as other:
            async with Watching(backend.registry.watch(ORDERS)) as watching:
                await watching.until(lambda _: True)
                server.freeze()
                with pytest.raises(RegistryUnavailable):
                    await watching.until(lambda _: False, within=30)
                with pytest.raises(RegistryUnavailable):
                    await backend.registry.fetch(ORDERS)
                server.thaw()
            async with Watching(followed(backend)) as watching:
                await other.registry.register(instance(), 30)
                await watching.until(lambda listing: ids(listing) == ["a"])

    async def test_a_watch_that_hangs_in_silence(self, server: EtcdServer) -> None:
        assert await self.sees(server, wait="0.5", within=30)

    async def test_the_control_a_watch_that_is_not_checked(self, server: EtcdServer) -> None:
        """Unless it was being opened again just then, because the machine had stood still: at most the third time."""
        for _ in range(3):
            if not await self.sees(server, wait="14", within=8):
                return
        pytest.fail("the control has noticed what it cannot")

    async def sees(self, server: EtcdServer, *, wait: str, within: float) -> bool:
        """Whether a watch that has begun to hang in silence sees what is registered then."""
        with Proxy("127.0.0.1", server.port) as proxy:
            url = f"etcd://127.0.0.1:{proxy.port}?wait={wait}"
            async with (
                opened(server.settings()) as other,
                opened(Settings(registry=RegistryUrl.parse(url), registry_timeout=0.5)) as backend,
                Watching(followed(backend)) as watching,
            ):
                await watching.until(lambda _: True)
                await held(proxy)
                proxy.forget()  # the idle connections, too: the check runs into its deadline, the next one works
                await other.registry.register(instance(), 30)
                seen = False
                with suppress(TimeoutError):
                    await watching.until(lambda listing: ids(listing) == ["a"], within=within)
                    seen = True
                await other.registry.deregister(instance())
                return seen

    async def test_a_watch_is_confirmed_while_nothing_changes(self, server: EtcdServer) -> None:
        async with opened(server.settings(options="?wait=0.2")) as backend:
            await backend.registry.register(instance(), 30)
            begun = asyncio.get_running_loop().time()
            async with Watching(backend.registry.watch(ORDERS)) as watching:
                await watching.until(lambda _: len(watching.seen) >= 6)
                assert watching.error is None
                assert len(watching.seen) <= 2 + (asyncio.get_running_loop().time() - begun) / 0.2
                assert {tuple(ids(listing)) for listing in watching.seen} == {("a",)}

    @pytest.mark.parametrize("gap", ["changes", "nothing"])
    async def test_compaction_while_a_watch_is_not_open(self, server: EtcdServer, gap: str) -> None:
        async with opened(server.settings()) as backend, opened(server.settings()) as other:
            await other.registry.register(instance("a"), 30)
            await other.registry.register(instance("b"), 30)
            watch = aiter(backend.registry.watch(ORDERS))
            assert ids(await anext(watch)) == ["a", "b"]
            if gap == "changes":
                await other.registry.deregister(instance("a"))
                await other.registry.register(instance("c"), 30)
            for number in range(5):
                server.put("elsewhere", str(number))
            server.compact()
            expected = ["b", "c"] if gap == "changes" else ["a", "b"]
            if gap == "changes":  # else the leader confirms what is known, of which nothing is said
                async with asyncio.timeout(PROMPT):
                    assert ids(await anext(watch)) == expected
            later = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.2)
            await other.registry.register(instance("d"), 30)
            async with asyncio.timeout(PROMPT):
                assert ids(await later) == [*expected, "d"]
            await watch.aclose()  # type: ignore[attr-defined]

    async def test_a_lost_lease(self, server: EtcdServer) -> None:
        async with opened(server.settings()) as backend:
            await backend.registry.register(instance(), 30)
            lease = server.call("/v3/lease/leases")["leases"][0]["ID"]
            server.call("/v3/lease/revoke", ID=lease)
            assert await backend.registry.heartbeat(instance(), 30) is False
            await backend.registry.register(instance(), 30)
            assert await backend.registry.heartbeat(instance(), 30) is True

    async def test_no_lease_is_left_behind(self, server: EtcdServer) -> None:
        async with opened(server.settings()) as backend:
            for version in "123":
                await backend.registry.register(instance(version=version), 30)
            assert len(server.call("/v3/lease/leases")["leases"]) == 1
            await backend.registry.deregister(instance())
            assert "leases" not in server.call("/v3/lease/leases")

    async def test_a_dead_host_is_passed_over(self, server: EtcdServer) -> None:
        hosts = f"etcd://127.0.0.1:{free_port()},127.0.0.1:{server.port}{FAST}"
        async with (
            opened(Settings(registry=RegistryUrl.parse(hosts))) as backend,
            opened(server.settings()) as other,
            Watching(backend.registry.watch(ORDERS)) as watching,
        ):
            await watching.until(lambda _: True)
            await other.registry.register(instance(), 30)
            await watching.until(lambda listing: ids(listing) == ["a"])
            await asyncio.sleep(1.2)  # through an idle reopening: silence is no reason to change hosts
            assert watching.error is None

    async def test_listings_and_changes_of_many_megabytes(self, server: EtcdServer) -> None:
        async with opened(server.settings()) as backend, opened(server.settings()) as other:
            assert backend.kv is not None
            assert other.kv is not None
            async with Watching(backend.kv.watch("")) as watching:
                for number in range(7):
                    await other.kv.put(f"big/{number}", b"%d" % number * 1_000_000)
                await watching.until(lambda entries: len(entries) == 7)
            assert [len(entry.value) for entry in await backend.kv.list("big/")] == [1_000_000] * 7

    async def test_documents_of_others(self, server: EtcdServer) -> None:
        for name, host in (("n", "2130706433"), ("u", "x@evil"), ("c", "10.0.0.5\\r\\nX: 1")):
            server.put(KEY + name, f'{{"id":"{name}","host":"{host}","port":80}}')
        server.put(KEY + "junk", b"\xff\x00")
        async with opened(server.settings()) as backend:
            await backend.registry.register(instance(), 30)
            assert ids(await backend.registry.fetch(ORDERS)) == ["a"]
            async with Watching(backend.registry.watch(ORDERS)) as watching:
                await watching.until(lambda listing: ids(listing) == ["a"])
                server.put(KEY + "more", "[[[[")
                await backend.registry.register(instance("b"), 30)
                await watching.until(lambda listing: ids(listing) == ["a", "b"])


class TestUsers:
    @pytest.fixture
    def guarded(self) -> Iterator[EtcdServer]:
        server = EtcdServer(token_ttl=1)
        try:
            server.start()
            server.enable_auth()
            yield server
        finally:
            server.close()

    async def test_a_limited_user_can_do_everything_and_outlives_its_token(self, guarded: EtcdServer) -> None:
        async with opened(guarded.limited(options=FAST)) as backend, opened(guarded.limited()) as other:
            assert backend.kv is not None
            await backend.registry.register(instance(), 30)
            async with Watching(backend.registry.watch(ORDERS)) as watching:
                await watching.until(lambda listing: ids(listing) == ["a"])
                await asyncio.sleep(2.5)  # the server looks for expired tokens every second
                assert await backend.registry.heartbeat(instance(), 30) is True
                await other.registry.register(instance("b"), 30)
                await watching.until(lambda listing: ids(listing) == ["a", "b"])
                await other.registry.deregister(instance("b"))
                await watching.until(lambda listing: ids(listing) == ["a"])
                assert watching.error is None
            assert await backend.registry.services("") == ["orders"]
            await backend.kv.put("policies/a", b"1", expected=0)
            lock = await backend.kv.lock("l", ttl=5)
            assert lock is not None
            await lock.release()

    async def test_a_restart_with_users(self, guarded: EtcdServer) -> None:
        async with opened(guarded.limited()) as backend:
            await backend.registry.register(instance(), 30)
            guarded.restart()
            assert await backend.registry.heartbeat(instance(), 30) is True

    async def test_refusals(self, guarded: EtcdServer) -> None:
        wrong = guarded.limited().changed(registry_password=Secret("wrong"))
        outside = guarded.settings(options="/elsewhere", registry_user="meshlib", registry_password=Secret("open sesame"))
        for settings in (wrong, outside, guarded.settings()):
            async with opened(settings) as backend:
                with pytest.raises(RegistryDenied):
                    await backend.registry.register(instance(), 30)
                with pytest.raises(RegistryDenied):
                    await backend.registry.fetch(ORDERS)
                with pytest.raises(RegistryDenied):
                    await anext(aiter(backend.registry.watch(ORDERS)))

    async def test_a_password_for_a_server_without_users(self, server: EtcdServer) -> None:
        async with opened(server.limited()) as backend:
            assert ids(await backend.registry.fetch(ORDERS)) == []
            server.enable_auth()
            assert ids(await backend.registry.fetch(ORDERS)) == []


@pytest.fixture(scope="module", params=["server", "mutual"])
def secured(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    server = EtcdServer(tls=request.param)
    try:
        server.start()
        yield server
    finally:
        server.close()


class TestTls:
    async def test_works(self, secured: EtcdServer) -> None:
        async with opened(secured.settings(options=FAST)) as backend:
            await backend.registry.register(instance(), 30)
            assert await backend.registry.heartbeat(instance(), 30) is True
            async with Watching(backend.registry.watch(ORDERS)) as watching:
                await backend.registry.register(instance("b"), 30)
                await watching.until(lambda listing: ids(listing) == ["a", "b"])
                await asyncio.sleep(0.8)
                assert watching.error is None

    async def test_another_ca(self, secured: EtcdServer) -> None:
        async with opened(secured.settings(registry_ca=str(secured.files / "other-ca.pem"))) as backend:
            with pytest.raises(RegistryUnavailable, match=r"(?i)certificate"):
                await backend.registry.fetch(ORDERS)

    async def test_plain_http(self, secured: EtcdServer) -> None:
        async with opened(Settings(registry=RegistryUrl.parse(f"etcd://127.0.0.1:{secured.port}"))) as backend:
            with pytest.raises(RegistryUnavailable, match=r"HTTPS|disconnect|reset"):
                await backend.registry.fetch(ORDERS)

    async def test_without_a_certificate_of_ours(self, secured: EtcdServer) -> None:
        async with opened(secured.settings(registry_cert="", registry_key="")) as backend:
            if secured.tls == "server":
                await backend.registry.fetch(ORDERS)
            else:
                with pytest.raises(RegistryUnavailable, match=r"(?i)certificate"):
                    await backend.registry.fetch(ORDERS)
