"""A real Consul: killed, wiped, frozen, cut off, guarded by ACLs, behind TLS, and used by strangers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from meshlib.backends import Backend, consul_http, open_backend
from meshlib.errors import CasConflict, RegistryDenied, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl, Status
from meshlib.settings import Settings
from tests.conformance.conftest import PATIENT
from tests.conformance.watching import PROMPT, Watching, held, ids
from tests.servers.base import eventually
from tests.servers.consul import ConsulServer
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.anyio

ORDERS, LATE = ServiceUrl("orders"), ServiceUrl("late")
ONE = Instance("orders", "orders-1", "10.0.0.5", 8080, labels={"team": "pay"})
TOKEN = "11111111-2222-3333-4444-555555555555"
WRONG = "99999999-2222-3333-4444-555555555555"
LEASE = 8.0
"""Seconds that a registration lasts which is to expire, but not before it is found."""


@pytest.fixture(scope="module")
def shared() -> Iterator[ConsulServer]:
    """For tests that leave it as it was."""
    with closing(ConsulServer()) as server:
        server.start()
        yield server


@pytest.fixture
def server() -> Iterator[ConsulServer]:
    """For tests that hurt it."""
    with closing(ConsulServer()) as server:
        server.start()
        yield server


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Backend]:
    backend = open_backend(Settings(registry=url, **{"registry_timeout": PATIENT, **settings}))
    try:
        yield backend
    finally:
        await backend.close()


async def soon(condition: Callable[[], Any], within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.05)


async def listed(backend: Backend, wanted: list[str], service: ServiceUrl = ORDERS) -> None:
    async def same() -> bool:
        with suppress(RegistryUnavailable):
            return ids(await backend.registry.fetch(service)) == wanted
        return False

    await soon(same)


async def refused(backend: Backend, service: ServiceUrl) -> bool:
    """True when the registry gives no list of ``service``."""
    try:
        await backend.registry.fetch(service)
    except RegistryUnavailable:
        return True
    return False


async def fails(watching: Watching, within: float) -> None:
    """Wait until the watch ends."""
    async with asyncio.timeout(within):
        await asyncio.wait({watching.task})
    assert isinstance(watching.error, RegistryUnavailable)


# Faults


async def test_killed_and_restarted(server: ConsulServer) -> None:
    async with opened(server.url) as backend:
        await backend.registry.register(ONE, 30)
        await listed(backend, ["orders-1"])
        async with Watching(backend.registry.watch(ORDERS)) as watching:
            await watching.until(lambda listing: ids(listing) == ["orders-1"])
            server.kill()
            await fails(watching, PROMPT)
        with pytest.raises(RegistryUnavailable):
            await backend.registry.heartbeat(ONE, 30)
        await asyncio.to_thread(server.start)
        assert await backend.registry.heartbeat(ONE, 30) is True
        async with Watching(backend.registry.watch(ORDERS)) as watching:
            await watching.until(lambda listing: ids(listing) == ["orders-1"])


async def test_state_lost(server: ConsulServer) -> None:
    async with opened(server.url) as backend:
        assert backend.kv is not None
        for number in range(20):
            await backend.kv.put(f"fill/{number}", b"")
        await backend.registry.register(ONE, 30)
        before = int((await backend.registry.fetch(ORDERS)).revision)
        server.kill()
        server.wipe()
        await asyncio.to_thread(server.start)
        assert await backend.registry.heartbeat(ONE, 30) is False
        async with Watching(backend.registry.watch(ORDERS)) as watching:
            assert ids(await watching.until(lambda _: True)) == []
            await backend.registry.register(ONE, 30)
            listing = await watching.until(lambda listing: ids(listing) == ["orders-1"])
        assert int(listing.revision) < before


async def test_no_list_is_taken_from_a_server_that_has_just_started(server: ConsulServer) -> None:
    """Consul's own doing, not ours: until it has heard of a leader it holds the question, then refuses. So there is no control;
    a server that does answer without knowing is the one in :func:`left_behind`."""
    async with opened(server.url) as before:
        await before.registry.register(ONE, 60)
        await listed(before, ["orders-1"])
    server.kill()
    seen: list[list[str]] = []
    async with opened(server.url) as after:
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        while not starting.done() or not seen:
            try:
                seen.append(ids(await after.registry.fetch(ORDERS)))
            except RegistryUnavailable:
                await asyncio.sleep(0.01)
        await starting
    assert all(listing == ["orders-1"] for listing in seen)


NOTICED = 1 + 1 / 16 + consul_http.MARGIN + 3.0
"""Seconds from a freeze to the deadline of a watch that waits for 1, and what a slow machine may take more."""


async def test_a_frozen_server_is_noticed_by_its_watch(server: ConsulServer) -> None:
    async with opened(f"{server.url}?wait=1") as backend:
        async with Watching(backend.registry.watch(ORDERS)) as watching:
            await watching.until(lambda _: True)
            server.freeze()
            await fails(watching, NOTICED + 7.0)
        server.thaw()
        await listed(backend, [])


async def test_without_the_deadline_nobody_would_notice(server: ConsulServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consul_http, "MARGIN", 600.0)
    async with opened(f"{server.url}?wait=1") as backend:
        async with Watching(backend.registry.watch(ORDERS)) as watching:
            await watching.until(lambda _: True)
            server.freeze()
            with pytest.raises(TimeoutError):
                await fails(watching, NOTICED)
        server.thaw()


async def test_a_frozen_server_has_a_deadline_for_calls_and_the_next_host_a_turn(server: ConsulServer) -> None:
    with closing(ConsulServer(join=server)) as second:
        await asyncio.to_thread(second.start)
        async with opened(f"consul://127.0.0.1:{second.port},127.0.0.1:{server.port}", registry_timeout=5.0) as backend:
            await backend.registry.register(ONE, 300)
            await listed(backend, ["orders-1"])
            second.freeze()
            with pytest.raises(RegistryUnavailable):
                await backend.registry.heartbeat(ONE, 30)
            assert await backend.registry.heartbeat(ONE, 300) is False  # the other agent, which does not know it
            await backend.registry.register(ONE, 300)
            await soon(partial(entries, server, 2))
            await listed(backend, ["orders-1"])
            second.thaw()

            async def only_ours() -> bool:
                assert await backend.registry.heartbeat(ONE, 300) is True
                return await entries(server, 1)

            await soon(only_ours)
            await backend.registry.deregister(ONE)
            await listed(backend, [])


async def entries(server: ConsulServer, wanted: int) -> bool:
    """True when the catalogue has so many of ``orders``."""
    return len((await asyncio.to_thread(server.call, "GET", "/v1/health/service/orders"))[1]) == wanted


async def test_failover_to_another_agent_when_one_is_killed(server: ConsulServer) -> None:
    with closing(ConsulServer(join=server)) as second:
        await asyncio.to_thread(second.start)
        async with opened(f"consul://127.0.0.1:{second.port},127.0.0.1:{server.port}") as backend:
            await backend.registry.register(ONE, 30)
            second.kill()
            assert await backend.registry.heartbeat(ONE, 30) is False
            await backend.registry.register(ONE, 30)
            assert await backend.registry.heartbeat(ONE, 30) is True
            await listed(backend, ["orders-1"])


@asynccontextmanager
async def left_behind() -> AsyncIterator[tuple[ConsulServer, Backend]]:
    """A server without its leader, and a client that asked it before. It knows ``orders``, which is not heartbeated any more
    and expires meanwhile, but not ``late``: that was registered with the other two while it was frozen."""
    with closing(ConsulServer(expect=3)) as one:
        with closing(ConsulServer(expect=3, join=one)) as two, closing(ConsulServer(expect=3, join=one)) as three:
            with ThreadPoolExecutor(3) as pool:
                await asyncio.to_thread(list, pool.map(lambda server: server.start(), (one, two, three)))
            leader = one.call("GET", "/v1/status/leader")[1]
            behind = two if str(three.rpc) in leader else three
            others = [server for server in (one, two, three) if server is not behind]
            async with opened(behind.url) as told, opened(others[0].url) as elsewhere:
                await told.registry.register(ONE, LEASE)
                await listed(told, ["orders-1"])
                behind.freeze()
                await elsewhere.registry.register(replace(ONE, service="late"), 60)
                await listed(elsewhere, ["orders-1"], LATE)
                for server in others:
                    server.kill()
                behind.thaw()
                gone = partial(_leaderless, behind)
                await asyncio.to_thread(eventually, gone, what="the leader is missed")
                yield behind, told


def _leaderless(server: ConsulServer) -> bool:
    return server.call("GET", "/v1/status/leader")[1] in ("", None)


async def test_with_the_quorum_lost_a_newcomer_gets_the_last_list_once_and_no_empty_one() -> None:
    async with left_behind() as (server, told):
        await soon(partial(refused, told, ORDERS))  # missing the leader and saying so are not quite one moment
        async with opened(server.url) as newcomer:
            assert ids(await newcomer.registry.fetch(ORDERS)) == ["orders-1"]
            assert await refused(newcomer, ORDERS)
            assert await refused(newcomer, LATE)
            assert newcomer.kv is not None
            with pytest.raises(RegistryUnavailable):
                await newcomer.kv.get("a")


async def test_a_cut_connection(shared: ConsulServer) -> None:
    with Proxy("127.0.0.1", shared.port) as proxy:
        async with opened(f"consul://127.0.0.1:{proxy.port}") as backend:
            async with Watching(backend.registry.watch(ServiceUrl("cut"))) as watching:
                await watching.until(lambda _: True)
                await held(proxy)
                proxy.cut()
                await fails(watching, PROMPT)
            assert ids(await backend.registry.fetch(ServiceUrl("cut"))) == []


async def test_closing_ends_a_watch_by_its_deadline(shared: ConsulServer) -> None:
    async with opened(f"{shared.url}?wait=1") as backend:
        async with Watching(backend.registry.watch(ServiceUrl("closed"))) as watching:
            await watching.until(lambda _: True)
            await asyncio.sleep(0.5)  # the question is held by now
            await backend.close()
            await fails(watching, 20)
        with pytest.raises(RegistryUnavailable):
            await backend.registry.fetch(ServiceUrl("closed"))


async def test_a_cancelled_watch_ends_at_once(shared: ConsulServer) -> None:
    async with opened(shared.url) as backend:
        watching = Watching(backend.registry.watch(ServiceUrl("cancelled")))
        async with watching:
            await watching.until(lambda _: True)
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun < PROMPT


# Others who use the same Consul


async def test_what_a_spring_client_sees(shared: ConsulServer) -> None:
    service = ServiceUrl("seen")
    instance = Instance("seen", "seen-8443", "10.0.0.5", 8443, "https", zone="eu-1", weight=3, labels={"team": "pay"})
    async with opened(shared.url) as backend:
        await backend.registry.register(instance, 15)
        await listed(backend, ["seen-8443"], service)
        _, ((found),) = shared.call("GET", "/v1/health/service/seen?passing=true")
        known = found["Service"]
        assert (known["ID"], known["Service"], known["Address"], known["Port"]) == ("seen-8443", "seen", "10.0.0.5", 8443)
        assert known["Tags"] == []
        assert known["Meta"] == {
            "secure": "true", "zone": "eu-1", "weight": "3", "team": "pay", "mesh-generation": "",
        }  # fmt: skip
        assert [(check["CheckID"], check["Type"]) for check in found["Checks"]][1:] == [("service:seen-8443", "ttl")]
        await backend.registry.deregister(instance)


async def test_a_spring_service(shared: ConsulServer) -> None:
    body = {
        "ID": "legacy-8080", "Name": "legacy", "Address": "10.0.0.7", "Port": 8080, "Tags": ["contextPath=/x"],
        "Meta": {"secure": "false", "zone": "eu-2", "hint": "blue"}, "Check": {"TTL": "30s"},
    }  # fmt: skip
    legacy = ServiceUrl("legacy")
    async with opened(shared.url) as backend:
        assert shared.call("PUT", "/v1/agent/service/register", body)[0] == 200
        assert ids(await backend.registry.fetch(legacy)) == []  # critical until its first pass
        assert shared.call("PUT", "/v1/agent/check/pass/service:legacy-8080")[0] == 200
        await listed(backend, ["legacy-8080"], legacy)
        (one,) = (await backend.registry.fetch(legacy)).instances
        assert one == Instance("legacy", "legacy-8080", "10.0.0.7", 8080, zone="eu-2", labels={"hint": "blue"})
        assert "legacy" in await backend.registry.services("")
        assert "consul" not in await backend.registry.services("")
        shared.call("PUT", "/v1/agent/service/deregister/legacy-8080")


async def test_what_an_operator_puts_into_maintenance_stays_there(shared: ConsulServer) -> None:
    service, instance = ServiceUrl("held"), Instance("held", "held-1", "10.0.0.5", 8080)
    path = "/v1/agent/service/maintenance/held-1?enable="
    async with opened(shared.url) as backend:

        async def status(wanted: Status) -> None:
            async def same() -> bool:
                return [one.status for one in (await backend.registry.fetch(service)).instances] == [wanted]

            await soon(same)

        await backend.registry.register(instance, 30)
        shared.call("PUT", path + "true")
        await status(Status.MAINTENANCE)
        assert await backend.registry.heartbeat(instance, 30) is True
        await backend.registry.register(instance, 30)
        await asyncio.sleep(0.2)
        await status(Status.MAINTENANCE)
        shared.call("PUT", path + "false")
        await status(Status.UP)
        shared.call("PUT", "/v1/agent/maintenance?enable=true")
        await status(Status.MAINTENANCE)
        shared.call("PUT", "/v1/agent/maintenance?enable=false")
        await status(Status.UP)
        await backend.registry.deregister(instance)


async def test_our_own_maintenance_comes_and_goes(shared: ConsulServer) -> None:
    service, up = ServiceUrl("resting"), Instance("resting", "resting-1", "10.0.0.5", 8080)
    down = Instance("resting", "resting-1", "10.0.0.5", 8080, status=Status.MAINTENANCE)
    async with opened(shared.url) as backend:
        for instance, passing in ((up, 1), (down, 0), (up, 1)):
            await backend.registry.register(instance, 30)

            async def told(instance: Instance = instance, passing: int = passing) -> bool:
                seen = (await backend.registry.fetch(service)).instances
                strangers = shared.call("GET", "/v1/health/service/resting?passing=true")[1]
                return seen == (instance,) and len(strangers) == passing

            await soon(told)
        await backend.registry.deregister(up)


async def test_our_lock_and_that_of_the_consul_command_exclude_each_other(shared: ConsulServer) -> None:
    async with opened(shared.url) as backend:
        assert backend.kv is not None
        _, session = shared.call("PUT", "/v1/session/create", {"LockDelay": "0s"})
        took = f"/v1/kv/job/.lock?flags={0x2DDCCBC058A50C18}&acquire={session['ID']}"
        assert shared.call("PUT", took, b"x") == (200, True)
        assert await backend.kv.lock("job", ttl=10) is None
        assert await backend.kv.list("job") == ()
        shared.call("PUT", f"/v1/session/destroy/{session['ID']}")
        lock = await backend.kv.lock("job", ttl=10)
        assert lock is not None
        await lock.release()


async def test_of_two_deletes_of_one_revision_one_wins(shared: ConsulServer) -> None:
    async with opened(shared.url) as backend:
        assert backend.kv is not None
        await backend.kv.put("raced", b"")
        entry = await backend.kv.get("raced")
        assert entry is not None
        with pytest.raises(CasConflict):
            await backend.kv.delete("raced", expected=0)
        deletes = (backend.kv.delete("raced", expected=entry.revision) for _ in range(4))
        outcomes = await asyncio.gather(*deletes, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CasConflict"] * 3 + ["NoneType"]


async def test_a_watch_of_keys_sleeps_through_changes_elsewhere(shared: ConsulServer) -> None:
    async with opened(shared.url) as backend:
        assert backend.kv is not None
        start = asyncio.get_running_loop().time()
        async with Watching(backend.kv.watch("quiet/")) as watching:
            await watching.until(lambda _: True)
            for number in range(30):
                await backend.kv.put(f"loud/{number}", b"")
            lock = await backend.kv.lock("quiet/lock", ttl=10)
            assert lock is not None
            await lock.release()
            await backend.kv.put("quiet/a", b"")
            await watching.until(lambda entries: [entry.key for entry in entries] == ["quiet/a"])
            assert len(watching.seen) <= 2 + asyncio.get_running_loop().time() - start  # one proof of life a second


# Checks by Consul, credentials, datacentres, TLS


class Health(BaseHTTPRequestHandler):
    status = 200
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


async def test_http_checks(shared: ConsulServer) -> None:
    service = ServiceUrl("probed")
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as app:
        threading.Thread(target=app.serve_forever, daemon=True).start()
        instance = Instance("probed", "probed-1", "127.0.0.1", app.server_port)
        async with opened(shared.url, check="http", health_path="/healthz") as backend:
            await backend.registry.register(instance, 3)
            await listed(backend, ["probed-1"], service)
            assert await backend.registry.heartbeat(instance, 3) is True
            Health.status = 503
            await listed(backend, [], service)
            await backend.registry.deregister(instance)
            assert await backend.registry.heartbeat(instance, 3) is False
        app.shutdown()
    assert set(Health.asked) == {"/healthz"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[ConsulServer]:
    with closing(ConsulServer(token=TOKEN)) as server:
        server.start()
        yield server


async def test_acls(guarded: ConsulServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", WRONG)
    async with opened(guarded.url, registry_token=TOKEN) as backend:
        assert backend.kv is not None
        await backend.registry.register(ONE, 30)
        assert await backend.registry.heartbeat(ONE, 30) is True
        await listed(backend, ["orders-1"])
        await backend.kv.put("a", b"1")
        await backend.kv.delete("a", expected=(await backend.kv.list(""))[0].revision)
        lock = await backend.kv.lock("a", ttl=10)
        assert lock is not None
        assert await lock.renew()
        await lock.release()


async def test_a_wrong_token(guarded: ConsulServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", TOKEN)
    async with opened(guarded.url, registry_token=WRONG) as backend:
        assert backend.kv is not None
        calls = (
            backend.registry.register(ONE, 30), backend.registry.heartbeat(ONE, 30), backend.registry.fetch(ORDERS),
            backend.registry.services(""), backend.registry.deregister(ONE), anext(backend.registry.watch(ORDERS)),
            backend.kv.get("a"), backend.kv.put("a", b""), backend.kv.lock("a", ttl=10), anext(backend.kv.watch("a")),
            backend.kv.delete("a", expected=5),
        )  # fmt: skip
        for call in calls:
            with pytest.raises(RegistryDenied) as caught:
                await call
            assert WRONG not in str(caught.value)
    async with opened(guarded.url) as backend:  # none of ours: the environment's serves
        await backend.registry.heartbeat(ONE, 30)


async def test_a_renewed_token_file(guarded: ConsulServer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(WRONG)
    async with opened(guarded.url, registry_token_file=str(file)) as backend:
        with pytest.raises(RegistryDenied):
            await backend.registry.services("")
        renewed = tmp_path / "renewed"
        renewed.write_text(TOKEN)
        renewed.rename(file)
        await backend.registry.services("")


async def test_datacentres(shared: ConsulServer) -> None:
    async with opened(f"{shared.url}?dc=dc1") as backend:
        assert backend.kv is not None
        await backend.kv.put("here", b"")
        await backend.kv.delete("here", expected=(await backend.kv.list("here"))[0].revision)
        assert ids(await backend.registry.fetch(ServiceUrl("nothing"))) == []
    async with opened(f"{shared.url}?dc=nowhere") as backend:
        assert backend.kv is not None
        for call in (backend.registry.fetch(ServiceUrl("nothing")), backend.kv.get("a"), backend.kv.delete("a", expected=5)):
            with pytest.raises(RegistryUnavailable):
                await call


async def test_https(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    tls = {
        "ca": ca.cert_pem.bytes().decode(),
        "cert": certificate.cert_chain_pems[0].bytes().decode(),
        "key": certificate.private_key_pem.bytes().decode(),
    }
    with closing(ConsulServer(tls=tls)) as server:
        await asyncio.to_thread(server.start)
        async with opened(server.url, registry_ca=str(tmp_path / "ca.pem")) as backend:
            await backend.registry.register(ONE, 30)
            await listed(backend, ["orders-1"])
        for url, ca_file in ((server.url, "other.pem"), (f"{server.url}?tls=true", "")):
            async with opened(url, registry_ca=ca_file and str(tmp_path / ca_file)) as backend:
                with pytest.raises(RegistryUnavailable):
                    await backend.registry.fetch(ORDERS)
