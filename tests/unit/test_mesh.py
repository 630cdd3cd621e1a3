"""Lifecycle and wiring, over the memory registry."""

from __future__ import annotations

import asyncio
import atexit
import errno
import gc
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import httpx2
import pytest

from meshlib import (
    BulkheadFull,
    ConfigError,
    Mesh,
    MissingExtra,
    PortInUse,
    RateLimited,
    ServiceUrl,
    Settings,
    bulkhead,
    get,
    rate_limit,
    service_client,
)  # fmt: skip
from meshlib.backends import memory
from meshlib.discovery.follow import Follower
from meshlib.discovery.view import View
from meshlib.flow import Wait
from meshlib.mesh import consuming as module
from meshlib.model import Instance, Status
from tests.servers.base import eventually
from tests.unit.wiring import Contended, end_parents


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> dict[str, int]: ...


def answer(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={"port": request.url.port or 80})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders", port=8080)


def sleeping(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], object]) -> None:
    """Have who leaves ``sleep``; other threads of this process sleep as ever."""
    monkeypatch.setattr("meshlib.lifecycle.time", SimpleNamespace(sleep=sleep))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Instead of sleeping, note for how long."""
    noted: list[float] = []
    sleeping(monkeypatch, noted.append)
    return noted


@pytest.fixture
def mesh(settings: Settings, pauses: list[float]) -> Iterator[Mesh]:
    with Mesh(settings, transport=lambda _: httpx2.MockTransport(answer)) as mesh:
        yield mesh
    end_parents()


def listed(settings: Settings) -> list[Instance]:
    entries = list(memory.store(settings.registry.path).instances.values())  # at once: a worker may be registering another
    return [instance for instance, _ in entries]


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "meshlib-worker"}


# -- wiring


def test_a_mesh_by_itself_starts_nothing(settings: Settings) -> None:
    before = workers()
    mesh = Mesh(settings)
    mesh.http("orders")
    assert workers() <= before, "one that another test left may end meanwhile"
    mesh.close()
    mesh.close()


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_SERVICE", "shop")
    monkeypatch.setenv("MESH_REGISTRY", "memory://")
    mesh = Mesh.from_env(port=9)
    assert (mesh.settings.service, mesh.settings.port, mesh.settings.registry.scheme) == ("shop", 9, "memory")


def test_register_discover_call_leave(mesh: Mesh, settings: Settings) -> None:
    with mesh.register() as registration:
        made = registration.wait(30)
        assert made == registration.instance
        assert listed(settings) == [made]
        assert mesh.client(Orders).fetch(1) == {"port": 8080}
        assert mesh.http("orders").get("/").json() == {"port": 8080}
        snapshot = mesh.snapshot("orders")
        assert snapshot is not None
        assert snapshot.instances == (made,)
        assert mesh.view("orders").live
    assert listed(settings) == []


def test_views_are_shared_by_clients_and_threads(mesh: Mesh) -> None:
    barrier, views = threading.Barrier(12), []

    def look() -> None:
        barrier.wait()
        mesh.prefetch("orders")
        views.append(mesh.view("mesh://orders"))

    threads = [threading.Thread(target=look) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mesh.client(Orders)
    mesh.http("orders/orders-1")
    assert len({id(view) for view in views}) == 1
    assert len(mesh._views) == 1
    assert len(memory.store(mesh.settings.registry.path).watchers) <= 2  # its instances, its policies


def test_hosts_that_were_called_once_leave_nothing_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "meshlib")  # a record that is kept keeps an error, its frames and the view
    monkeypatch.setattr(module, "HOSTS", 8)
    with Mesh(settings.changed(watch_idle=0.01, cold_start_timeout=0.01, cold_start_grace=0.01)) as mesh:
        memory.store(settings.registry.path).set_down(True)  # so that watches end soon
        client = httpx2.Client(mounts={"all://": mesh.transport()})
        for number in range(40):
            with pytest.raises(httpx2.ConnectError):
                client.get(f"http://host-{number}/")
        eventually(lambda: gc.collect() >= 0 and len(mesh._views) <= 8)


def test_a_quota_is_shared_with_the_other_instances_of_our_service(settings: Settings, mesh: Mesh) -> None:
    """Ours is "orders": of two instances of it, each may make half of the calls."""
    shared = memory.store(settings.registry.path)
    for number in (1, 2):
        instance = Instance("orders", f"orders-{number}", "10.0.0.1", 8080 + number)
        shared.instances["", "orders", instance.id] = (instance, float("inf"))
    mesh.snapshot("orders")
    http = mesh.http("orders", policies=[rate_limit("10/h", scope="cluster")])
    for _ in range(5):
        assert http.get("/").status_code == 200
    with pytest.raises(RateLimited, match="the limit of 10/3600s for orders is reached"):
        http.get("/")
    anybody = Mesh(settings.changed(service=""), transport=lambda _: httpx2.MockTransport(answer))
    with anybody:
        assert anybody._peers() == 1


def test_a_limit_of_the_host_lies_in_the_state_directory(settings: Settings, mesh: Mesh) -> None:
    with mesh.register() as registration:
        registration.wait()
        http = mesh.http("orders", policies=[rate_limit("1/h", scope="host"), bulkhead(1)])
        with http.stream("GET", "/") as response, pytest.raises(RateLimited):
            assert response.status_code == 200
            http.get("/")
    assert len(list((settings.state_path / "limits").iterdir())) == 1


def test_a_place_is_held_until_the_body_is_read(settings: Settings) -> None:
    def stream(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=iter([b"a", b"b"]))

    with Mesh(settings, transport=lambda _: httpx2.MockTransport(stream)) as mesh, mesh.register() as registration:
        registration.wait()
        http = mesh.http("orders", policies=[bulkhead(1)])
        with http.stream("GET", "/") as response:
            with pytest.raises(BulkheadFull):
                http.get("/")
            response.read()
            assert http.get("/").status_code == 200


def test_a_child_keeps_what_was_only_prefetched(tmp_path: Path) -> None:
    """Nothing but the watch holds the view, and the watch stays behind in the parent."""
    done = run(
        """
        import gc, os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from meshlib import Mesh
        mesh = Mesh.from_env()
        assert mesh.snapshot("orders").instances
        if os.fork() == 0:
            gc.collect()
            known = mesh.view("orders").snapshot
            os._exit(0 if known is not None and known.instances else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
        """,
        MESH_REGISTRY="static://orders=127.0.0.1:8081",
        MESH_STATE_DIR=str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_names_are_in_the_namespace_of_the_settings(settings: Settings) -> None:
    mesh = Mesh(settings.changed(namespace="shop.prod"))
    assert mesh.view("orders").service == ServiceUrl("orders", "shop.prod")
    assert mesh.view("shop.prod.orders") is mesh.view("orders/orders-1")
    assert mesh.view("shop.test.orders").service == ServiceUrl("orders", "shop.test")


@pytest.mark.parametrize("name", ["", "a.b", "a b", "orders/a b", "mesh://"])
def test_an_unusable_name(name: str, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="service name"):
        Mesh(settings).http(name)


def test_a_snapshot_is_not_waited_for_for_ever(settings: Settings, pauses: list[float]) -> None:
    memory.store(settings.registry.path).set_down(True)
    with Mesh(settings) as mesh:
        assert mesh.snapshot("orders", timeout=0.01) is None
        eventually(lambda: mesh.view("orders").problem == "the memory registry is down")


# -- settings that cannot be


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("consul", "meshlib.backends.consul"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "consul", None)
    with pytest.raises(MissingExtra, match=r"pip install 'meshlib-cloud\[consul\]'") as caught:
        Mesh.from_env(registry="consul://127.0.0.1:8500")
    assert str(caught.value).startswith("MESH_REGISTRY (from code): needs the library 'py-consul', which is not installed")
    assert caught.value.extra == "consul"


def test_an_unusable_option_of_the_registry() -> None:
    with pytest.raises(ConfigError, match=r"^MESH_REGISTRY \(from code\): memory:// has no options"):
        Mesh.from_env(registry="memory://?x=1")


@pytest.mark.parametrize(
    ("changes", "port", "said"),
    [
        ({"service": ""}, 8080, "MESH_SERVICE"),
        ({"port": 0}, None, "MESH_PORT"),
        ({"port": 0}, 0, "MESH_PORT"),
        ({"port": 0, "advertise": "10.0.0.5"}, None, "MESH_PORT"),
        ({}, 65536, "'65536' is not a port"),
        ({}, -1, "'-1' is not a port"),
        ({}, "8080", "'8080' is not a port"),
        ({}, True, "'True' is not a port"),
    ],
)
def test_registering_without_what_it_needs(settings: Settings, changes: Any, port: Any, said: str) -> None:
    mesh = Mesh(settings.changed(**changes))
    with pytest.raises(ConfigError, match=said):
        mesh.register(port)
    assert not mesh._worker.running


def test_registering_a_port_twice(mesh: Mesh) -> None:
    mesh.register()
    with pytest.raises(ConfigError, match=r"^port \(from code\): 8080 is registered by this process already"):
        mesh.register(8080)
    mesh.register(8081)


def test_two_registrations_of_one_id(settings: Settings, pauses: list[float]) -> None:
    named = settings.changed(instance_id="orders-1")
    with Mesh(named) as one, Mesh(named) as other, Mesh(named.changed(service="users")) as users:
        one.register(8080).wait(30)
        for mesh in (one, other):
            with pytest.raises(ConfigError, match=r"^MESH_INSTANCE_ID \(from code\): 'orders-1' is registered by this process"):
                mesh.register(8081)
        users.register(8081)
        one.close()
        other.register(8081).wait(30)
        assert [each.port for each in listed(settings) if each.service == "orders"] == [8081]


def test_an_advertised_port_is_enough(settings: Settings, pauses: list[float]) -> None:
    with Mesh(settings.changed(port=0, advertise="10.0.0.5:80")) as mesh:
        assert mesh.register().wait(30).netloc == "10.0.0.5:80"


class Sockets:
    """A system that refuses."""

    def __init__(self, problem: OSError) -> None:
        self.problem, self.closed = problem, False

    def __call__(self, *_: Any) -> Sockets:
        return self

    def setsockopt(self, *_: Any) -> None: ...

    def bind(self, _: Any) -> None:
        raise self.problem

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("number", "port", "kind", "said"),
    [
        (
            errno.EADDRINUSE,
            None,
            PortInUse,
            r"^MESH_PORT \(from environment\): cannot listen on 127.0.0.1:80: .*in use; for example another",
        ),
        (errno.EADDRINUSE, 81, PortInUse, r"^MESH_PORT \(from code\): cannot listen on 127.0.0.1:81"),
        (errno.EACCES, None, ConfigError, r"^MESH_PORT \(from environment\): .*[Pp]ermission"),
        (errno.EADDRNOTAVAIL, None, ConfigError, r"^MESH_HOST \(from code\): .*; for example 0.0.0.0"),
        (socket.EAI_NONAME, None, ConfigError, r"^MESH_HOST \(from code\)"),
    ],
)
def test_listening_where_it_cannot(
    number: int, port: int | None, kind: type, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = Sockets(OSError(number, os.strerror(number) if number > 0 else "Name or service not known"))
    monkeypatch.setattr(socket, "socket", sockets)
    settings = Settings.load(environ={"MESH_PORT": "80", "MESH_REGISTRY": "memory://"})
    object.__setattr__(settings, "host", "127.0.0.1")
    with pytest.raises(kind, match=said) as caught:
        Mesh(settings).listen(port)
    assert type(caught.value) is kind
    assert sockets.closed


def test_listening_on_no_port(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="not a port"):
        Mesh(settings).listen(70_000)


# -- leaving (failure 22)


class Recorder(memory.MemoryRegistry):
    """Notes what it is asked, in the order of everything else that the test notes."""

    def __init__(self, shared: memory.Store, noted: list[str]) -> None:
        super().__init__(shared)
        self.noted = noted

    async def register(self, instance: Instance, ttl: float) -> None:
        self.noted.append("register")
        await super().register(instance, ttl)

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:
        self.noted.append("heartbeat")
        return await super().heartbeat(instance, ttl)

    async def deregister(self, instance: Instance) -> None:
        self.noted.append("deregister")
        await super().deregister(instance)

    async def close(self) -> None:
        self.noted.append("close registry")


def recorded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[Mesh, list[str]]:
    noted: list[str] = []
    mesh = Mesh(settings.changed(ttl=3600.0))  # no heartbeat comes in between, however slow the machine
    mesh._backend = memory.Backend(Recorder(memory.store(settings.registry.path), noted), None)
    in_flight = mesh.in_flight
    sleeping(monkeypatch, lambda seconds: noted.append(f"wait {seconds:g} draining={in_flight.draining}"))
    monkeypatch.setattr(in_flight, "wait", lambda seconds: noted.append(f"drain {seconds:g}") or True)
    return mesh, noted


def test_the_order_of_leaving(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, noted = recorded(settings.changed(drain_wait=35.0, drain_timeout=7.0), monkeypatch)
    monkeypatch.setattr(mesh._engine, "close", lambda: noted.append("close connections"))
    mesh.register().wait(30)
    mesh.close()
    assert noted == ["register", "deregister", "wait 35.1 draining=True", "drain 7", "close registry", "close connections"]


@pytest.mark.parametrize(
    ("registry", "wait"), [("consul", 1.0), ("etcd", 1.0), ("local", 1.0), ("memory", 0.1), ("static", 0.0)]
)
def test_how_long_consumers_need_to_know(
    registry: str, wait: float, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, noted = recorded(settings, monkeypatch)
    registration = mesh.register()
    registration.wait(30)
    object.__setattr__(mesh.settings.registry, "scheme", registry)
    registration.close()
    assert f"wait {wait:g} draining=True" in noted
    mesh.close()


def test_nobody_is_waited_for_where_nobody_was_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, noted = recorded(settings, monkeypatch)

    async def unreachable() -> Any:
        raise ConfigError("x", "y")

    monkeypatch.setattr(mesh, "_registry", unreachable)
    registration = mesh.register()
    eventually(lambda: registration._reconciler.problem != "")
    with pytest.raises(TimeoutError, match=r"not registered after 0.1 s: x \(from code\): y"):
        registration.wait(0.1)
    registration.close()
    assert noted == ["drain 30"]
    assert registration.instance is None
    mesh.close()


def test_closing_twice_or_after_the_mesh(mesh: Mesh, pauses: list[float]) -> None:
    registration = mesh.register()
    registration.wait(30)
    registration.close()
    registration.close()
    mesh.close()
    registration.close()
    registration.drain()
    registration.up()
    assert pauses == [0.1]
    assert not mesh._worker.running, "nothing is started again for what is closed"


def test_the_mesh_is_closed_while_a_wish_is_on_its_way(mesh: Mesh, pauses: list[float]) -> None:
    registration = mesh.register()
    registration.wait(30)

    class Closing:
        """Another thread closes all just before the control plane is told."""

        def __setattr__(self, *_: object) -> None:
            registration._in_flight = mesh.in_flight
            mesh.close()

    registration._in_flight = Closing()  # type: ignore[assignment]
    registration.drain()
    assert pauses == [0.1]
    assert not mesh._worker.running, "nothing is started again for what is closed"


def test_the_control_plane_is_stopped_while_a_registration_begins(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, loop = mesh._worker, mesh._worker.loop

    def stopped() -> asyncio.AbstractEventLoop:
        given = loop()
        monkeypatch.setattr(worker, "loop", loop)
        worker.stop()  # another thread does
        return given

    monkeypatch.setattr(worker, "loop", stopped)
    with mesh.register() as registration:
        assert registration.wait(30).service == "orders"


def test_closing_from_many_threads_is_done_once(mesh: Mesh, pauses: list[float]) -> None:
    registration = mesh.register()
    registration.wait(30)
    threads = [threading.Thread(target=registration.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pauses == [0.1]


def test_in_a_child_process_closing_does_nothing(
    mesh: Mesh, settings: Settings, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    registration = mesh.register()
    registration.wait(30)
    registration._pid += 1
    registration.close()
    registration.drain()
    assert "its child cannot set it to draining" in caplog.records[-1].getMessage()
    assert not registration.registrar
    registration._pid -= 1
    assert registration.registrar
    assert len(listed(settings)) == 1
    assert not mesh.in_flight.draining
    assert pauses == []
    registration.close()
    assert listed(settings) == []


def test_a_registry_that_hangs_does_not_hold_up_the_end(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    mesh, noted = recorded(settings.changed(registry_timeout=0.05), monkeypatch)

    async def hang(_: Instance) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(mesh._backend.registry, "deregister", hang)  # type: ignore[union-attr]
    registration = mesh.register()
    registration.wait(30)
    start = time.monotonic()
    registration.close()
    assert time.monotonic() - start < 20.0, "without a limit it would be for ever"
    assert noted[-1] == "drain 30"
    mesh.close()


def test_requests_in_flight_are_reported(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    registration = mesh.register()
    registration.wait(30)
    monkeypatch.setattr(mesh.in_flight, "wait", lambda _: False)
    mesh.in_flight.begin()
    registration.close()
    assert caplog.records[-1].getMessage() == "1 requests were still in flight after 30 s"


def test_registrations_are_closed_at_exit_until_they_are_closed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[Any] = []
    monkeypatch.setattr(atexit, "register", handlers.append)
    monkeypatch.setattr(atexit, "unregister", handlers.remove)
    registration = mesh.register()
    assert handlers == [registration.close]
    meanwhile: list[Any] = []
    monkeypatch.setattr(mesh.in_flight, "wait", lambda _: meanwhile.extend(handlers) is None)
    registration.close()
    assert meanwhile == [registration.close], "a process that ends as another thread of it leaves waits for that"
    assert handlers == []


@pytest.mark.parametrize(("how", "waits"), [({}, 2), ({"serving": False}, 1), ({"drain": False}, 0)])
def test_whom_leaving_waits_for(mesh: Mesh, settings: Settings, pauses: list[float], monkeypatch: pytest.MonkeyPatch, how: Any,
                                waits: int) -> None:  # fmt: skip
    """Consumers, and requests in flight; or those only; or nobody."""
    drains: list[float] = []
    monkeypatch.setattr(mesh.in_flight, "wait", lambda timeout: drains.append(timeout) is None)
    mesh.register().wait(30)
    mesh.leave(**how)
    assert listed(settings) == []
    assert len(pauses) + len(drains) == waits


def test_who_comes_second_waits_for_the_first(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is told to end must not, while another thread of it is leaving; but a signal's handler must not wait for
    what it has interrupted."""
    registration = mesh.register()
    registration.wait(30)
    order: list[str] = []

    def drain(_: float) -> bool:
        registration.close()  # as a handler would, in this thread
        second.start()
        order.append("first")
        return True

    def again() -> None:
        registration.close()
        order.append("second")

    second = threading.Thread(target=again)
    monkeypatch.setattr(mesh.in_flight, "wait", drain)
    registration.close()
    second.join()
    assert order == ["first", "second"]


def test_who_ends_while_it_looks_for_its_port_is_not_registered(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[Any] = []
    monkeypatch.setattr(atexit, "register", handlers.append)
    mesh.announce(lambda: ())
    assert mesh._announcement is not None
    for handler in handlers:
        handler()
    assert mesh._announcement is None


def test_statuses(mesh: Mesh, settings: Settings) -> None:
    registration = mesh.register()
    registration.wait(30)
    for act, status in (
        (registration.drain, Status.DRAINING), (registration.up, Status.UP),
        (registration.maintenance, Status.MAINTENANCE), (lambda: registration.maintenance(False), Status.UP),
    ):  # fmt: skip
        act()
        eventually(lambda wanted=status: [one.status for one in listed(settings)] == [wanted])  # type: ignore[misc]
        assert mesh.in_flight.draining is (status is Status.DRAINING)


# -- again


def test_a_closed_mesh_can_be_used_again(mesh: Mesh, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        registration = mesh.register()
        registration.wait(30)
        assert not mesh.in_flight.draining
        orders = mesh.client(Orders)
        eventually(lambda: mesh.view("orders").live)
        assert orders.fetch(1) == {"port": 8080}
        mesh.close()
        assert not mesh._worker.running
        assert not mesh.view("orders").followed
        assert listed(settings) == []
        assert not memory.store(settings.registry.path).watchers
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_closing_trusts_again_whom_nobody_probes_any_more(mesh: Mesh, settings: Settings) -> None:
    made = Instance("orders", "orders-1", "10.0.0.5", 8080)
    memory.store(settings.registry.path).instances["", "orders", "orders-1"] = (made, float("inf"))
    mesh.snapshot("orders")
    view = mesh.view("orders")
    fleet = view.fleet
    fleet._on_eject = lambda *_: None
    fleet.eject(fleet.tiers.prime[0])
    assert not fleet.tiers.prime
    mesh.close()
    assert [endpoint.instance for endpoint in fleet.tiers.prime] == [made]


class Followers:
    """Notes in ``most`` how many followed a view at the same time, and in ``now`` how many do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        run = Follower.run

        async def counted(follower: Follower) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await run(follower)
            finally:
                self.now -= 1

        monkeypatch.setattr(Follower, "run", counted)


class NoLock:
    """Takes the place of a lock, and keeps nobody out."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def never_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a mesh not know that it is being closed."""
    monkeypatch.setattr(Mesh, "_closing", property(lambda _: False, lambda *_: None), raising=False)


@pytest.mark.parametrize("control", [False, True], ids=["", "control: it does not know that it is being closed"])
def test_a_call_while_the_mesh_is_being_closed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, control: bool) -> None:
    """It comes after the worker has stopped, and before the views know: from another thread, but that makes no difference."""
    if control:
        never_closing(monkeypatch)
    followers, stop = Followers(monkeypatch), mesh._worker.stop

    def met(**options: Any) -> None:
        stop(**options)
        mesh.prefetch("orders")

    mesh.prefetch("orders")
    eventually(lambda: mesh.view("orders").live)
    orders = mesh.view("orders")  # held, as by a client
    with monkeypatch.context() as closing:
        closing.setattr(mesh._worker, "stop", met)
        mesh.close()
    mesh.prefetch("orders")
    # The one that the closing mesh began may have made it live before the other has begun.
    eventually(lambda: orders.live and followers.now >= (2 if control else 1))
    assert followers.most == (2 if control else 1)


@pytest.mark.parametrize("control", [False, True], ids=["", "control: without the lock"])
def test_the_mesh_is_closed_while_a_call_begins_to_follow(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, control: bool) -> None:
    """Between marking the view as followed and starting its follower, another thread closes as far as it can."""
    followers, report, lock = Followers(monkeypatch), mesh._worker.report, Contended()
    mesh._lock = NoLock() if control else lock  # type: ignore[assignment]
    closer = threading.Thread(target=mesh.close)

    def met(work: Any) -> None:
        closer.start()
        eventually(lambda: lock.waited > 0 or not closer.is_alive())
        report(work)

    orders = mesh.view("orders")
    with monkeypatch.context() as beginning:
        beginning.setattr(mesh._worker, "report", met)
        orders.attend()
    closer.join(30)
    orders.attend()
    # The one that began while the mesh was closed may have made it live before the other has begun.
    eventually(lambda: orders.live and followers.now == (2 if control else 1))
    assert followers.most == (2 if control else 1)


@pytest.mark.parametrize("control", [False, True], ids=["", "control: nobody lets them go"])
def test_closing_lets_waiting_callers_go(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, control: bool) -> None:
    """Even where the follower that they wait for was cancelled before its first step."""
    if control:
        monkeypatch.setattr(View, "settle", lambda _: None)
    monkeypatch.setattr(mesh._worker, "report", lambda _: None)
    orders = mesh.view("orders")
    wait = orders.attend()
    assert wait is not None
    mesh.close()
    assert wait.future.done() is not control


@pytest.mark.parametrize("control", [False, True], ids=["", "control: it does not know that it is being closed"])
def test_nobody_waits_for_what_is_not_followed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, control: bool) -> None:
    if control:
        never_closing(monkeypatch)
    waits: list[Wait | None] = []
    monkeypatch.setattr(mesh._worker, "report", lambda _: None)
    with monkeypatch.context() as closing:
        closing.setattr(mesh._worker, "stop", lambda **_: waits.append(mesh.view("new").attend()))
        mesh.close()
    assert (waits == [None]) is not control


def test_closing_from_two_threads_at_once(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[str] = []

    def stop(**_: object) -> None:
        stops.append("stopped")
        mesh.close()  # another thread's

    with monkeypatch.context() as closing:
        closing.setattr(mesh._worker, "stop", stop)
        mesh.close()
    assert stops == ["stopped"]


def test_a_child_process_starts_afresh(mesh: Mesh, settings: Settings) -> None:
    """What the fork hook does, without a fork."""
    mesh.register().wait(30)
    mesh.client(Orders).fetch(1)
    served = mesh.wsgi(lambda environ, start: [])  # type: ignore[arg-type]
    worker, parent = mesh._worker, mesh._worker._loop
    registrations = list(mesh._registrations)
    thread = worker._thread
    mesh.in_flight.begin()
    mesh._forked()
    assert (worker.running, mesh._registrations, mesh.view("orders").followed) == (False, [], False)
    assert len(mesh.in_flight) == 0
    body: Any = served({}, lambda *_: None)
    assert len(mesh.in_flight) == 1, "an app that was wrapped before the fork is counted where the child looks"
    body.close()
    assert mesh.client(Orders).fetch(1) == {"port": 8080}
    assert worker._loop is not parent
    assert parent is not None
    assert thread is not None
    parent.call_soon_threadsafe(parent.stop)
    thread.join(30)
    for registration in registrations:
        atexit.unregister(registration.close)


def test_a_child_that_serves_joins_its_parent(mesh: Mesh, settings: Settings) -> None:
    """One that does not serve never does."""
    mesh.register(8080).wait(30)
    of_parent = mesh._registrations[0]
    mesh._forked()
    mesh.client(Orders).fetch(1)
    assert mesh._registrations == []
    served = mesh.wsgi(lambda environ, start: [])  # type: ignore[arg-type]
    for _ in range(2):
        body: Any = served({}, lambda *_: None)
        body.close()
    (joined,) = mesh._registrations
    assert joined is not of_parent
    assert joined.wait(30).port == 8080
    atexit.unregister(of_parent.close)


def test_a_child_that_registers_itself_does_not_join_again(mesh: Mesh) -> None:
    mesh.register(8080)
    of_parent = mesh._registrations[0]
    mesh._forked()
    mesh.register(8080)
    mesh.in_flight.end(mesh.in_flight.begin())
    assert len(mesh._registrations) == 1
    atexit.unregister(of_parent.close)


def test_a_grandchild_joins_too_and_a_request_does_not_fail_of_it(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mesh.register(8080)
    of_parent = mesh._registrations[0]
    mesh._forked()
    mesh._forked()

    def refuse(_port: int) -> None:
        raise ConfigError("port", "is no good")

    monkeypatch.setattr(mesh, "register", refuse)
    mesh.in_flight.begin()
    assert caplog.records[-1].getMessage() == (
        "this child of a registered process does not join it: port (from code): is no good"
    )
    atexit.unregister(of_parent.close)


def test_the_end_of_the_server_closes_what_is_registered(mesh: Mesh, settings: Settings, pauses: list[float]) -> None:
    import asyncio

    async def app(*_: Any) -> None:
        raise AssertionError

    async def receive() -> Any:
        return {"type": next(messages)}

    async def send(_: Any) -> None:
        pass

    messages = iter(("lifespan.startup", "lifespan.shutdown"))
    mesh.register().wait(30)
    asyncio.run(mesh.asgi(app)({"type": "lifespan"}, receive, send))
    assert listed(settings) == []
    assert pauses == [], "nobody is served any more while it would wait"


def test_a_fork_without_hooks_is_noticed_before_a_lock_is_taken(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    forks: list[int] = []
    mesh._lock.acquire()  # a thread of the parent had it

    def forked() -> None:
        forks.append(1)
        mesh._pid, mesh._lock = os.getpid(), threading.Lock()

    monkeypatch.setattr(mesh, "_forked", forked)
    monkeypatch.setattr(mesh, "_pid", -1)
    mesh.view("orders")
    assert forks == [1]


# -- whole interpreters


PATIENT = {"MESH_REGISTRY_TIMEOUT": "30", "MESH_COLD_START_TIMEOUT": "30"}
"""However slow the disk is."""


def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    environment = {**os.environ, **PATIENT, "PYTHONPATH": str(Path(__file__).parents[2]), **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_an_interpreter_with_an_open_mesh_ends_clean_and_deregisters(tmp_path: Path) -> None:
    """With the registry that everybody starts with, which writes in a thread."""
    code = """
        import time
        from meshlib import Mesh
        mesh = Mesh.from_env()
        mesh.register().wait(30)
        assert mesh.snapshot("orders").instances
        mesh.prefetch("users")
    """
    url = f"local://{tmp_path}/registry.db"
    done = run(code, MESH_SERVICE="orders", MESH_PORT="8080", MESH_REGISTRY=url, MESH_STATE_DIR=str(tmp_path))
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "destroyed" not in done.stderr
    assert "could not be deregistered" not in done.stderr
    check = """
        import asyncio
        from meshlib.backends import open_backend
        from meshlib.model import ServiceUrl
        from meshlib.settings import Settings
        async def main():
            backend = open_backend(Settings.load())
            print(len((await backend.registry.fetch(ServiceUrl("orders"))).instances))
            await backend.close()
        asyncio.run(main())
    """
    assert run(check, MESH_REGISTRY=url, MESH_STATE_DIR=str(tmp_path)).stdout == "0\n"


def test_a_fork_of_an_open_mesh(tmp_path: Path) -> None:
    done = run(
        """
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from meshlib import Mesh
        mesh = Mesh.from_env()
        registration = mesh.register()
        registration.wait(30)
        assert mesh.snapshot("orders").instances
        child = os.fork()
        if child == 0:
            assert mesh.snapshot("orders").instances, "what was known is known"
            registration.close()
            mesh.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        mesh.prefetch("users")
        mesh.close()
        """,
        MESH_SERVICE="orders", MESH_PORT="8080", MESH_REGISTRY=f"local://{tmp_path}/registry.db", MESH_STATE_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
