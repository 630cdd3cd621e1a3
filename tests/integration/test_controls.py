"""Negative controls of the backends' fault tests: the same faults with one defence off, and what then goes wrong."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshlib.backends import etcd_watch, local_file
from meshlib.backends.etcd_gateway import Gateway
from meshlib.backends.local import LocalRegistry
from meshlib.backends.local_db import Database
from meshlib.errors import RegistryDenied, RegistryUnavailable
from tests.conformance.watching import Watching, ids
from tests.integration import test_consul, test_etcd, test_local
from tests.integration.test_local import Start
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer

pytestmark = pytest.mark.anyio
start, path = test_local.start, test_local.path


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


async def test_etcd_compacted_and_not_listed_again(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
        await asyncio.sleep(2.5)  # the server looks for expired tokens every second
        with pytest.raises(RegistryDenied):
            await backend.registry.heartbeat(test_etcd.instance(), 30)


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


async def test_local_file_damaged_and_not_quarantined(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_file, "damaged", lambda _: False)
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_bytes(b"no database " * 1000)
    registry = LocalRegistry(Database(path))
    with pytest.raises(RegistryUnavailable):
        await registry.fetch(test_local.ORDERS)
    await registry.close()
