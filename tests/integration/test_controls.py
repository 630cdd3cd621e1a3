"""Negative controls of the backends' fault tests: the same faults with one defence off, and what then goes wrong."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from meshlib.backends import consul_http, etcd_watch, local_db, local_file
from meshlib.backends.consul_registry import Answer, ConsulRegistry
from meshlib.backends.etcd import EtcdRegistry
from meshlib.backends.etcd_gateway import Gateway
from meshlib.backends.etcd_wire import Line, Watched
from meshlib.backends.local import LocalRegistry
from meshlib.backends.local_db import Database
from meshlib.errors import RegistryDenied, RegistryUnavailable
from meshlib.model import Instance
from tests.conformance.watching import Watching, ids
from tests.integration import test_consul, test_etcd, test_local
from tests.integration.test_local import Start
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer

pytestmark = pytest.mark.anyio
start, path, patient = test_local.start, test_local.path, test_etcd.patient


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with closing(EtcdServer(token_ttl=1)) as server:
        server.start()
        yield server


@pytest.fixture
def consul() -> Iterator[ConsulServer]:
    with closing(ConsulServer()) as server:
        server.start()
        yield server


def hastily(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader is not asked before a watch is opened: it would notice what is to go unnoticed."""
    confirm = etcd_watch._Known.confirm

    async def later(self: Any) -> etcd_watch.Change:
        monkeypatch.setattr(etcd_watch._Known, "confirm", confirm)
        return etcd_watch.Change(self.revision, {})

    monkeypatch.setattr(etcd_watch._Known, "confirm", later)


async def test_etcd_compacted_and_not_listed_again(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hastily(monkeypatch)
    monkeypatch.setattr(etcd_watch, "Compacted", type("Never", (Exception,), {}))
    async with test_etcd.opened(etcd.settings()) as backend:
        watch = aiter(backend.registry.watch(test_etcd.ORDERS))
        await anext(watch)
        for number in range(5):
            etcd.put("elsewhere", str(number))
        etcd.compact()
        with pytest.raises(RegistryUnavailable):
            await anext(watch)


async def test_etcd_restarted_and_not_watched_again(etcd: EtcdServer) -> None:
    async with test_etcd.opened(etcd.settings()) as backend:
        await backend.registry.register(test_etcd.instance(), 30)
        async with Watching(backend.registry.watch(test_etcd.ORDERS)) as watching:
            await watching.until(lambda listing: ids(listing) == ["a"])
            etcd.kill()
            etcd.start()
            await backend.registry.register(test_etcd.instance("b"), 30)
            with pytest.raises(RegistryUnavailable):
                await watching.until(lambda listing: ids(listing) == ["a", "b"])


async def trusting(self: EtcdRegistry, one: Instance, _: float) -> bool:
    """A heartbeat that takes any answer of status 200 for a yes."""
    await self.gateway.keepalive(self._leases[self._key(one)])
    return True


async def test_etcd_state_lost_and_the_heartbeat_trusts(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EtcdRegistry, "heartbeat", trusting)
    async with test_etcd.opened(etcd.settings()) as backend:
        await backend.registry.register(test_etcd.instance(), 30)
        etcd.kill()
        etcd.wipe()
        etcd.start()
        assert await backend.registry.heartbeat(test_etcd.instance(), 30) is True
        assert ids(await backend.registry.fetch(test_etcd.ORDERS)) == []


async def test_etcd_lease_lost_and_the_heartbeat_trusts(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EtcdRegistry, "heartbeat", trusting)
    async with test_etcd.opened(etcd.settings()) as backend:
        await backend.registry.register(test_etcd.instance(), 30)
        etcd.call("/v3/lease/revoke", ID=etcd.call("/v3/lease/leases")["leases"][0]["ID"])
        assert await backend.registry.heartbeat(test_etcd.instance(), 30) is True
        assert ids(await backend.registry.fetch(test_etcd.ORDERS)) == []


async def test_etcd_state_lost_behind_a_watch_that_believes_every_store(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Gateway._checked

    def far_ahead(self: Gateway, host: str, line: Line) -> Watched:
        answer = checked(self, host, line)
        answer.header.revision = 1_000_000
        return answer

    hastily(monkeypatch)
    monkeypatch.setattr(Gateway, "_checked", far_ahead)
    async with (
        test_etcd.opened(etcd.settings(options="?wait=14")) as backend,
        test_etcd.swapped(etcd, backend, "behind") as watch,
    ):
        with pytest.raises(TimeoutError):  # it waits for a revision that is long in coming
            async with asyncio.timeout(1):
                await anext(watch)


async def test_etcd_state_lost_behind_a_watch_that_takes_silence_for_a_yes(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unasked(self: Any) -> etcd_watch.Change:
        return etcd_watch.Change(self.revision, {})

    monkeypatch.setattr(etcd_watch._Known, "confirm", unasked)
    async with (
        test_etcd.opened(etcd.settings(options=test_etcd.FAST)) as backend,
        test_etcd.swapped(etcd, backend, "ahead") as watch,
    ):
        for _ in range(3):
            assert ids(await anext(watch)) == ["a"]  # confirmed again and again, and gone


async def test_etcd_frozen_and_not_asked(etcd: EtcdServer) -> None:
    async with test_etcd.opened(etcd.settings(options="?wait=14")) as backend:
        async with Watching(backend.registry.watch(test_etcd.ORDERS)) as watching:
            await watching.until(lambda _: True)
            await asyncio.sleep(0.5)  # the watch is open by now; opening it has a deadline of its own
            etcd.freeze()
            with pytest.raises(TimeoutError):
                await watching.until(lambda _: False, within=4)
            etcd.thaw()


async def test_etcd_token_expired_and_we_log_in_no_more(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    etcd.enable_auth()
    monkeypatch.setattr(Gateway, "_discard", lambda *_: False)
    async with test_etcd.opened(etcd.limited()) as backend:
        await backend.registry.register(test_etcd.instance(), 30)
        for _ in range(5):
            await asyncio.sleep(2.5)  # the server looks for expired tokens every second; each use prolongs one
            try:
                await backend.registry.heartbeat(test_etcd.instance(), 30)
            except RegistryDenied:
                return
    pytest.fail("no token has expired")


async def test_consul_state_lost_and_the_heartbeat_trusts(consul: ConsulServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with test_consul.opened(consul.url) as backend:
        await backend.registry.register(test_consul.ONE, 30)
        known = await backend.registry._definition(test_consul.ONE)  # type: ignore[attr-defined]

        async def remembered(*_: object) -> dict[str, Any]:
            return known

        monkeypatch.setattr(ConsulRegistry, "_definition", remembered)
        consul.kill()
        consul.wipe()
        await asyncio.to_thread(consul.start)
        assert await backend.registry.heartbeat(test_consul.ONE, 30) is False  # the check is gone, too, and Consul says so:
        monkeypatch.setattr(consul_http, "_UNKNOWN", ())
        for _ in range(3):
            with pytest.raises(RegistryUnavailable, match="500"):  # with a status that reads as "try again later", for ever
                await backend.registry.heartbeat(test_consul.ONE, 30)
        assert ids(await backend.registry.fetch(test_consul.ORDERS)) == []


async def test_consul_quorum_lost_and_any_answer_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def taken(_self: ConsulRegistry, _reader: object, old: Answer) -> Answer:
        return old

    monkeypatch.setattr(ConsulRegistry, "_fresh", taken)
    for _ in range(3):  # what was sent to it while it was frozen may reach it all the same
        if await wrongly_answered() == (["orders-1"], []):
            break
    else:
        pytest.fail("it has been noticed")


async def wrongly_answered() -> tuple[list[str], list[str]]:
    """What a server left behind says of a service that has expired, as if it had not, and of one as if nobody were there."""
    async with test_consul.left_behind() as (server, told):
        await asyncio.sleep(test_consul.LEASE)  # it has expired, and nobody can write that down
        async with test_consul.opened(server.url) as newcomer:
            return ids(await told.registry.fetch(test_consul.ORDERS)), ids(await newcomer.registry.fetch(test_consul.LATE))


async def test_consul_agent_killed_with_no_other_named(consul: ConsulServer) -> None:
    with closing(ConsulServer(join=consul)) as second:
        await asyncio.to_thread(second.start)
        async with test_consul.opened(second.url) as backend:
            await backend.registry.register(test_consul.ONE, 30)
            second.kill()
            for _ in range(3):
                with pytest.raises(RegistryUnavailable):
                    await backend.registry.heartbeat(test_consul.ONE, 30)


async def test_consul_frozen_and_calls_have_no_deadline(consul: ConsulServer) -> None:
    async with test_consul.opened(consul.url, registry_timeout=600) as backend:
        await backend.registry.register(test_consul.ONE, 30)
        consul.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await backend.registry.heartbeat(test_consul.ONE, 30)
        consul.thaw()


async def test_local_writer_stopped_and_writes_have_no_deadline(start: Start, path: Path) -> None:
    registry = LocalRegistry(Database(path, timeout=60))
    await registry.register(test_local.instance("kept"), 30)
    writer = start("hold")
    assert await test_local.line(writer) == "holding"
    writer.send_signal(signal.SIGSTOP)
    write = asyncio.create_task(registry.heartbeat(test_local.instance("kept"), 30))
    done, _ = await asyncio.wait([write], timeout=3)
    assert not done
    writer.kill()
    writer.send_signal(signal.SIGCONT)
    writer.wait()
    assert await write
    await registry.close()


async def test_local_writer_killed_in_the_middle_of_no_transaction(start: Start, path: Path) -> None:
    registry = LocalRegistry(Database(path))
    await registry.register(test_local.instance("kept"), 30)
    writer = start("hold", without="transactions")
    assert await test_local.line(writer) == "holding"
    writer.kill()
    writer.wait()
    assert ids(await registry.fetch(test_local.ORDERS)) == []  # what the dead one had not finished
    assert await registry.heartbeat(test_local.instance("kept"), 30) is False
    await registry.close()


async def test_local_file_deleted_and_its_identity_not_looked_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (local_file, local_db):
        monkeypatch.setattr(module, "identity", lambda _: (0, 0))
    believer, newcomer = LocalRegistry(Database(path)), LocalRegistry(Database(path))
    await believer.register(test_local.instance("kept"), 30)
    for each in list(path.parent.iterdir()):
        each.unlink()
    for _ in range(3):
        assert await believer.heartbeat(test_local.instance("kept"), 30) is True  # in a file that nobody can open any more
        assert ids(await newcomer.fetch(test_local.ORDERS)) == []
    for registry in (believer, newcomer):
        await registry.close()


async def test_local_file_deleted_and_its_log_left(start: Start, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_file, "_companions", lambda _: [])
    other = start("stay", "other")  # a process that has not noticed yet, and has the log and its index open
    assert (await test_local.line(other)).startswith("registered")
    path.unlink()
    registry = LocalRegistry(Database(path))
    for _ in range(3):
        with pytest.raises(RegistryUnavailable, match="I/O error"):
            await registry.fetch(test_local.ORDERS)
    await registry.close()


async def test_local_file_damaged_and_not_quarantined(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_file, "damaged", lambda _: False)
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_bytes(b"no database " * 1000)
    registry = LocalRegistry(Database(path))
    with pytest.raises(RegistryUnavailable):
        await registry.fetch(test_local.ORDERS)
    await registry.close()
