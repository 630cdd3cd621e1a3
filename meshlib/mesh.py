"""Lifecycle and wiring: the only composition root. It decides nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx2

from meshlib import lifecycle, server
from meshlib.backends import Backend, KeyValue, Registry, open_backend
from meshlib.balance.endpoint import Endpoint
from meshlib.balance.fleet import Fleet
from meshlib.balance.outliers import Rules
from meshlib.balance.pickers import Picker, named
from meshlib.balance.tiers import Here
from meshlib.client.declare import Method
from meshlib.client.explain import Explanation, ways
from meshlib.client.stack import Stack, innermost
from meshlib.client.stub import AsyncStub, SyncStub, declaration_of, implement
from meshlib.discovery.follow import Follower, Surroundings
from meshlib.discovery.probe import Probes, probes, restore
from meshlib.discovery.registration import Reconciler
from meshlib.discovery.store import SnapshotStore
from meshlib.discovery.view import View
from meshlib.errors import ConfigError
from meshlib.events import Events
from meshlib.flow import Call, Next
from meshlib.governance.office import Office
from meshlib.governance.policies import Operator
from meshlib.lifecycle import Registration
from meshlib.metrics.collect import Metered, collected
from meshlib.metrics.families import Metrics
from meshlib.metrics.server import Request, counted_asgi, counted_wsgi
from meshlib.metrics.shared import Shared
from meshlib.model import ServiceUrl, Snapshot
from meshlib.mounts import AsyncMeshClient, AsyncMeshTransport, MeshClient, MeshTransport
from meshlib.policies.base import Commons, Policy, Site, checked, overlaid
from meshlib.policies.breaker import Breaker
from meshlib.policies.circuit_breaker import breakers_in
from meshlib.settings import Settings
from meshlib.transport import AsyncEngine, Engine, MakeAsyncTransport, MakeTransport
from meshlib.worker import Worker

if TYPE_CHECKING:  # what only providers need is loaded when there is one
    from meshlib.announcement import Announcement, Look
    from meshlib.management import Management, Standing

log = logging.getLogger(__name__)

C = TypeVar("C")
R = TypeVar("R")

HOSTS = 256
"""Hosts whose stacks a mounted transport keeps: mounted on ``all://``, it meets whatever hosts its users name."""

# Of the parent, in a child process: closed there, it might reach into what the parent goes on using.
_abandoned: list[object] = []
_meshes: weakref.WeakSet[Mesh] = weakref.WeakSet()


class Mesh:
    """A service mesh inside this process.

    ``settings`` default to the environment's. ``transport`` and ``async_transport`` make the httpx2 transport for an
    instance (default: real connections); tests put mocks or WSGI/ASGI apps there. Creating a mesh starts nothing and
    contacts nobody; close it, or use it as a context manager. Raises :class:`ConfigError`.
    """

    # Monotonic seconds and those since the epoch; a mesh for tests has a time of its own.
    _clock: Callable[[], float] = staticmethod(time.monotonic)
    _wall: Callable[[], float] = staticmethod(time.time)

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        transport: MakeTransport | None = None,
        async_transport: MakeAsyncTransport | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        self.events, self._commons = Events(), Commons()
        self.in_flight = server.InFlight()
        self._metered = None if self.settings.metrics == "off" else Metered()
        self._shelf: Shared | None = None
        self._engine = Engine(self.settings, transport)
        self._async_engine = AsyncEngine(self.settings, async_transport)
        self._worker = Worker()
        self._management: Management | None = None
        self.in_flight.on_serving = self._serving
        self._probes = self._make_probes()
        self._backend: Backend | None = open_backend(self.settings)
        self._pid = os.getpid()
        # A view lives while a client holds it or it is watched: hosts that were called once leave nothing behind.
        self._views: weakref.WeakValueDictionary[ServiceUrl, View] = weakref.WeakValueDictionary()
        self._own: View | None = None  # of our own service, once somebody shares a quota with its other instances
        self._office = Office(self.settings, self.events, self._kv, clock=self._clock, wall=self._wall)
        self._stacks_known: weakref.WeakSet[Stack] = weakref.WeakSet()
        self._provider_stacks: weakref.WeakSet[server.ProviderStack] = weakref.WeakSet()
        self._registrations: list[Registration] = []
        self._inherited: list[int | None] = []  # ports that the parent of this process had registered
        self._announcement: Announcement | None = None
        self._announcing: Look | None = None  # how to see where this process listens, once it serves
        self._lock = threading.Lock()
        self._closing = self._closed = self._said = False
        self._default_picker = named(self.settings.picker, source=self.settings.source("picker"))
        self._here = Here(self.settings.zone, f"{self.settings.service}@{socket.gethostname()}:{self.settings.port}")
        self._rules = Rules(
            seconds=self.settings.ejection_time, share=self.settings.ejection_share, panic=self.settings.panic_threshold
        )
        _meshes.add(self)

    @classmethod
    def from_env(cls, **code: Any) -> Self:
        """A mesh with the ``MESH_*`` variables' settings; ``code`` overrides single ones. Never blocks on the registry."""
        return cls(Settings.load(**code))

    # -- consumers

    def client(self, cls: Callable[..., C], *, name: str | ServiceUrl | None = None) -> C:
        """An implementation of the Protocol ``cls``, declared with ``@service_client``; it is watched from now on, so that
        the first call finds its instances. ``name`` replaces the declared one (another namespace, one exact instance).
        (Its hint is a callable, because mypy lets nobody give a Protocol for a ``type[C]``.)"""
        declaration = declaration_of(cls)
        target = ServiceUrl.parse(name or declaration.target, namespace=self.settings.namespace)
        below = self._innermost(target, declaration.picker)

        def stack(method: Method) -> Stack:
            policies = overlaid(declaration.policies, method.policies)
            return self._stack(target, policies, below, f"{cls.__qualname__}.{method.name}", method.path)

        self.prefetch(target)
        return implement(  # type: ignore[no-any-return]
            cls, target, stack, SyncStub(self._engine, self._clock), AsyncStub(self._async_engine, self._clock),
            timeout=self.settings.timeout, connect=self.settings.connect_timeout,
        )  # fmt: skip

    def http(
        self, name: str | ServiceUrl, *, picker: str | Picker | None = None, policies: Iterable[Policy] = (), **options: Any
    ) -> httpx2.Client:
        """A plain ``httpx2.Client`` whose relative URLs go to the service ``name``, to the instances that ``picker`` chooses
        (default ``MESH_PICKER``), governed by ``policies``; ``options`` are the client's."""
        target = ServiceUrl.parse(name, namespace=self.settings.namespace)
        given = checked(policies, "policies")
        transport = self.transport(target, picker=picker, policies=given)
        return MeshClient(transport=transport, **self._options(target, given, options))

    def ahttp(
        self, name: str | ServiceUrl, *, picker: str | Picker | None = None, policies: Iterable[Policy] = (), **options: Any
    ) -> httpx2.AsyncClient:
        """The same as a plain ``httpx2.AsyncClient``."""
        target = ServiceUrl.parse(name, namespace=self.settings.namespace)
        given = checked(policies, "policies")
        transport = self.atransport(target, picker=picker, policies=given)
        return AsyncMeshClient(transport=transport, **self._options(target, given, options))

    def transport(
        self, name: str | ServiceUrl | None = None, *, picker: str | Picker | None = None, policies: Iterable[Policy] = ()
    ) -> MeshTransport:
        """A transport for ``httpx2.Client(mounts={"http://orders": mesh.transport()})``, or plain httpx's. The host of a
        URL names the service; ``name`` pins it (to one exact instance, say)."""
        return MeshTransport(self._stacks(name, picker, policies), self._engine)

    def atransport(
        self, name: str | ServiceUrl | None = None, *, picker: str | Picker | None = None, policies: Iterable[Policy] = ()
    ) -> AsyncMeshTransport:
        """The same for async clients."""
        return AsyncMeshTransport(self._stacks(name, picker, policies), self._async_engine)

    def prefetch(self, *names: str | ServiceUrl) -> None:
        """Begin to watch these services now instead of on their first call. Returns at once."""
        for name in names:
            self._view(ServiceUrl.parse(name, namespace=self.settings.namespace)).attend()

    def snapshot(self, name: str | ServiceUrl, *, timeout: float | None = None) -> Snapshot | None:
        """What is known of a service now, waiting at most ``timeout`` seconds (default ``MESH_COLD_START_TIMEOUT``) if it
        is nothing yet. ``snapshot.age(time.time())`` are the seconds since a registry confirmed it."""
        view = self._view(ServiceUrl.parse(name, namespace=self.settings.namespace))
        wait = view.attend()
        if wait is not None:
            try:
                wait.future.exception(wait.timeout if timeout is None else timeout)
            except TimeoutError:
                pass
        return view.snapshot

    def view(self, name: str | ServiceUrl) -> View:
        """The live view of a service: its snapshot, whether it is live, and if not, why."""
        return self._view(ServiceUrl.parse(name, namespace=self.settings.namespace))

    def services(self, *, timeout: float | None = None) -> list[str]:
        """The names of all services of ``MESH_NAMESPACE``, asked of the registry now. Raises :class:`RegistryError`, and
        TimeoutError after ``timeout`` seconds (default: what the registry itself has, and a second)."""

        async def asked() -> list[str]:
            return await (await self._registry()).services(self.settings.namespace)

        self._check_pid()
        return self._worker.spawn(asked).result(self.settings.registry_timeout + 1.0 if timeout is None else timeout)

    def explain(
        self,
        name: str | ServiceUrl,
        *,
        method: str = "GET",
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Explanation:
        """What would become of a call now, through every client of the service that this mesh has: which policies are in force
        and what they say, and of each instance whether the call may go there, and if not, why. ``str()`` of it is for people.
        Nothing is called; a service that is not known yet is waited for as by :meth:`snapshot`."""
        target = ServiceUrl.parse(name, namespace=self.settings.namespace)
        raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in (headers or {}).items()]
        call = Call(target, method.upper(), path.encode(), raw, arguments=arguments)
        known, view, stacks = self.snapshot(target), self._view(target), self._stacks_of(target)
        age = None if known is None else known.age(self._wall())
        return Explanation(target, f"{call.method} {path}", known, age, view.live, view.problem,
                           ways(view.fleet, call, stacks))  # fmt: skip

    @property
    def policies(self) -> Operator:
        """The policy documents in the registry's key-value store, for operators: ``mesh.policies.put("orders", {...})``. Its
        methods block; they raise :class:`ConfigError` where the registry has no such store."""
        self._check_pid()
        return self._office.operator(self._worker.spawn)

    def breakers(self, name: str | ServiceUrl) -> list[Breaker]:
        """The circuits of a service that this mesh's clients have, one for each method and policy: to look at, and to open,
        close or disable by hand."""
        stacks = self._stacks_of(ServiceUrl.parse(name, namespace=self.settings.namespace))
        return sorted({each for stack in stacks for each in breakers_in(stack.layers)}, key=lambda each: each.method)

    def metrics(self) -> Metrics:
        """What this process has counted since it began (a forked one: since the fork), and how things stand: calls, requests,
        events of policies, instances. ``metrics().prometheus()`` is the text to be scraped. With ``MESH_METRICS=off``, calls
        and requests are not counted; with ``shared``, and from :meth:`register` on, the counts are those of all processes that
        serve the port (it reads files then), the others' as of 5 seconds ago at most."""
        self._check_pid()
        return self._own_metrics() if self._shelf is None else Metrics(self._shelf.together())

    def _own_metrics(self) -> Metrics:
        return collected(self._metered, self.events, self._all_views(), self._registrations, len(self.in_flight))

    # -- providers

    def register(self, port: int | None = None) -> Registration:
        """List this process under ``MESH_SERVICE`` at ``port`` (default ``MESH_PORT``), from now until the result is closed;
        it is a context manager. Returns at once: an unreachable registry is a warning and is tried again.

        Processes that serve the same port are one instance: they may all register, or one of them before it forks the others,
        which then join it on the first request that they serve through :meth:`wsgi` or :meth:`asgi`."""
        if not self.settings.service:
            raise ConfigError("MESH_SERVICE", "is not set, so there is no name to register", example="orders")
        lifecycle.check_port(port)
        self._silence()  # whoever says the port needs nobody to look for it
        return self._register(port)

    def _register(self, port: int | None) -> Registration:
        self._check_pid()
        lifecycle.check_once(self.settings, port, [each.port for each in self._registrations], _named_alike(self.settings))
        if self.settings.management_port:
            self.management.open()
        reconciler = Reconciler(self.settings, self._registry, port=port, generation=secrets.token_hex(8))
        registration = Registration(
            reconciler, self._worker, self.in_flight, self.settings, self._left, port=port
        )  # fmt: skip
        self._registrations.append(registration)
        if self.settings.metrics == "shared":
            self._share(port)
        return registration

    @property
    def management(self) -> Management:
        """The management endpoints of this process, and its health checks: ``mesh.management.check("database", ping)``."""
        from meshlib.management import Management  # noqa: PLC0415 - see above

        with self._lock:
            if self._management is None:
                metrics = self.metrics if self.settings.management_metrics == "on" else None
                self._management = Management(
                    self.settings, self._worker, self._standing, touched=self.in_flight.serving, metrics=metrics
                )
            return self._management

    def announce(self, look: Look | None = None, *, at_once: bool = True) -> None:
        """Register with the port on which this process really listens, as soon as it does: :meth:`register` for servers that
        do not tell theirs. It does nothing without ``MESH_SERVICE``. With ``at_once=False`` it begins when the first request
        comes, or the ASGI lifespan has started. Where ``MESH_PORT`` is another port, or is not set and this process listens on
        several, nothing is registered, and the log says so. Call it as often as you like."""
        if not self.settings.service:
            self._nameless()
            return
        if self._announcement is not None or self._registrations:
            return
        from meshlib.announcement import Announcement, listening  # noqa: PLC0415 - see above

        self._check_pid()
        self._announcing = look = look or listening
        if at_once:
            self._announcement = Announcement(self.settings, self._worker, self._register, look)
            lifecycle.at_end(self._silence)  # else it might register a process that has just left
        else:
            self.in_flight.on_serving = self._serving

    def _nameless(self) -> None:
        """Say, once, that nobody will be able to call this process, to somebody who seems to think otherwise."""
        settings = self.settings
        given = next((name for name in ("port", "advertise", "instance_id") if getattr(settings, name)), None)
        if given is not None and not self._said:
            self._said = True
            log.warning(
                "MESH_%s (from %s) is set, but MESH_SERVICE is not: this process is not registered, and nobody can call "
                "it by name; for example MESH_SERVICE=orders",
                given.upper(),
                settings.sources.get(given, "code"),
            )

    def listen(self, port: int | None = None, *, backlog: int = 2048) -> socket.socket:
        """A socket that listens on ``MESH_HOST`` and ``port`` (default ``MESH_PORT``; 0 lets the system choose). Raises
        :class:`PortInUse`."""
        return lifecycle.listen(self.settings, port, backlog=backlog)

    def wsgi(self, app: server.WsgiApp, *, policies: Iterable[Policy] = (), management: bool = True) -> server.WsgiApp:
        """``app`` as a provider, under ``policies``: its requests are counted, so that closing a registration waits for them,
        and their deadlines and priorities are those of the calls made for them. What is refused is answered with a problem
        document (RFC 9457). Beside it, the management endpoints are served, unless ``management`` is false. Raises
        :class:`ConfigError` for a policy that cannot stand on a provider."""
        served = server.wsgi(server.governed_wsgi(app, self._provider(policies)), self.in_flight)
        served = served if self._metered is None else counted_wsgi(served, self._metered.requests)
        return self.management.wsgi(served) if management else served

    def asgi(
        self,
        app: server.AsgiApp,
        *,
        policies: Iterable[Policy] = (),
        management: bool = True,
        own: Callable[[], Collection[str]] = tuple,
    ) -> server.AsgiApp:
        """The same for ASGI; when the server tells its lifespan's end, registrations are closed. Paths that ``own()`` names
        are the app's, even if a management endpoint has the same."""
        served = server.asgi(server.governed_asgi(app, self._provider(policies)), self.in_flight, self._stopped)
        served = served if self._metered is None else counted_asgi(served, self._metered.requests)
        return self.management.asgi(served, own) if management else served

    def handler(self, refuse: Callable[[Any], R], *, policies: Iterable[Policy] = ()) -> server.Handler[R]:
        """The same for a framework whose middleware is a function of a request: see :class:`meshlib.server.Handler`. ``refuse``
        makes a response of the error for which a request is not served."""
        metered = self._metered
        count = None if metered is None else lambda verb: Request(metered.requests, verb, time.monotonic)
        return server.Handler(self._provider(policies), self.in_flight, refuse, count)

    # -- lifecycle

    def leave(self, *, serving: bool = True, drain: bool = True) -> None:
        """Close all registrations (see :meth:`Registration.close`), and make no more; calls go on. With ``serving=False`` the
        server has stopped to accept: consumers are not waited for, only requests in flight; with ``drain=False`` they are not,
        either."""
        self._silence()
        for registration in list(self._registrations):
            if not drain:
                registration.abandon()
            elif serving:
                registration.close()
            else:
                registration.stopped()

    def close(self) -> None:
        """Close registrations (see :meth:`Registration.close`), the control plane and connections. It can be used again.
        Calls made meanwhile go on with what is known; a second close meanwhile returns at once."""
        self._check_pid()
        self.leave()
        if self._management is not None:
            self._management.close()
        with self._lock:
            if self._closing:
                return
            self._closing = True  # until nothing of the old control plane is left, nobody begins to follow
        try:
            self._worker.stop(last=self._close_backend)  # after whoever uses it
            self._probes = self._make_probes()
            for view in self._all_views():
                view.close()
        finally:
            self._closing, self._closed = False, True
        if self._provider_stacks:  # what follows for them has ended; the next request has it begin again
            self.in_flight.on_serving = self._serving
        self._engine.close()
        self._async_engine.close()

    async def aclose(self) -> None:
        """The same for asyncio: the running loop's connections are closed in it, and it goes on while the rest closes."""
        await self._async_engine.aclose()
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- wiring

    def _options(self, target: ServiceUrl, policies: Iterable[Policy], options: dict[str, Any]) -> dict[str, Any]:
        # A timeout among the policies stands in place of the default; the client's own, which it may narrow, is not known.
        timed = any(policy.kind == "timeout" for policy in policies)
        timeout = httpx2.Timeout(None if timed else self.settings.timeout, connect=self.settings.connect_timeout)
        return {"base_url": f"http://{target.name}", "timeout": timeout, "trust_env": False, **options}

    def _stacks(
        self, name: str | ServiceUrl | None, picker: str | Picker | None, policies: Iterable[Policy]
    ) -> Callable[[str], tuple[ServiceUrl, Stack]]:
        chosen, given = None if picker is None else named(picker), checked(policies, "policies")
        known: dict[str, tuple[ServiceUrl, Stack]] = {}

        def made(target: ServiceUrl) -> tuple[ServiceUrl, Stack]:
            return target, self._stack(target, given, self._innermost(target, chosen))

        if name is not None:
            target = ServiceUrl.parse(name, namespace=self.settings.namespace)
            known[str(target.name)] = known[target.service] = made(target)

        @lru_cache(maxsize=HOSTS)
        def stack_of(host: str) -> tuple[ServiceUrl, Stack]:
            return made(ServiceUrl.parse(host, namespace=self.settings.namespace))

        return lambda host: known.get(host) or stack_of(host)

    def _stack(self, target: ServiceUrl, policies: Iterable[Policy], below: Next, *where: str) -> Stack:
        stack = Stack(self._site(target, *where), tuple(policies), below)
        with self._lock:
            self._stacks_known.add(stack)
        self._office.consume(stack, target, self._view(target).attend)
        return stack

    def _stacks_of(self, target: ServiceUrl) -> list[Stack]:
        with self._lock:
            return [stack for stack in self._stacks_known if stack.site.service == str(target.name)]

    def _provider(self, policies: Iterable[Policy]) -> server.ProviderStack:
        own = ServiceUrl(self.settings.service, self.settings.namespace)
        # Apart from the limits that consumers of this service keep on this host.
        site = replace(self._site(own), state_dir=lambda: self.settings.state_path / "provider")
        stack = server.ProviderStack(site, policies, service=own)
        with self._lock:
            self._provider_stacks.add(stack)
        self._office.provide(stack, own)
        return stack

    def _site(self, target: ServiceUrl, method: str = "", template: str = "") -> Site:
        return Site(
            service=str(target.name), method=method, events=self.events, commons=self._commons,
            instances=self._peers, state_dir=lambda: self.settings.state_path,
            caller=self.settings.service, reach=self._reach, template=template,
            recorder=None if self._metered is None else self._metered.calls,
            clock=self._clock, wall=self._wall,
        )  # fmt: skip

    def _reach(self, name: str) -> tuple[ServiceUrl, Next]:
        """The way to another service; it is watched from now on, for when it is needed the registry may be gone, too."""
        target = ServiceUrl.parse(name, namespace=self.settings.namespace)
        self.prefetch(target)
        return target, self._innermost(target, None)

    def _peers(self) -> int:
        """How many instances of our own service are known, whatever their state: all of them may be calling."""
        if not self.settings.service:
            return 1
        if self._own is None:
            self._own = self._view(ServiceUrl.parse(self.settings.service, namespace=self.settings.namespace))
        self._own.attend()
        snapshot = self._own.snapshot
        return len(snapshot.instances) if snapshot is not None else 1

    def _innermost(self, target: ServiceUrl, picker: Picker | None) -> Next:
        return innermost(self._view(target), picker or self._default_picker, self._here, self._clock)

    def _view(self, target: ServiceUrl) -> View:
        service = target.name
        self._check_pid()
        with self._lock:
            view = self._views.get(service)
            if view is None:
                fleet = Fleet(service, rules=self._rules, on_eject=self._probe, on_drained=self._discard, on_due=self._judge,
                              clock=self._clock)  # fmt: skip
                # The follower settles it sooner; this bound only keeps a call from hanging should the worker be wedged.
                timeout = self.settings.cold_start_timeout + 2.0
                view = self._views[service] = View(
                    service, fleet, self._follow, timeout=timeout, clock=self._clock, wall=self._wall
                )
            return view

    def _all_views(self) -> list[View]:
        with self._lock:
            return list(self._views.values())

    def _follow(self, view: View) -> None:
        self._check_pid()
        with self._lock:
            if view.followed or self._closing:
                return
            again, self._closed = self._closed, False
            epoch = view.begin()
            # Under the lock: what has begun before closing does is stopped by it.
            self._worker.report(lambda: Follower(view, self._surroundings(), epoch).run())
        if again:
            log.warning("%s is called after its mesh was closed, which begins anew: close the mesh after the last call, or "
                        "once more", view.service)  # fmt: skip

    def _surroundings(self) -> Surroundings:
        settings = self.settings
        store = SnapshotStore(settings.state_path, registry=str(settings.registry), max_age=settings.snapshot_max_age)
        return Surroundings(
            settings, self._registry, self._probes, store, self._clock, self._wall, beside=self._office.follow
        )  # fmt: skip

    async def _opened(self) -> Backend:
        if self._backend is None:
            self._backend = open_backend(self.settings)
        return self._backend

    async def _registry(self) -> Registry:
        return (await self._opened()).registry

    async def _kv(self) -> KeyValue | None:
        return (await self._opened()).kv

    async def _close_backend(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()

    def _probe(self, fleet: Fleet, endpoint: Endpoint) -> None:
        self._worker.report(lambda: restore(fleet, endpoint, self._probes))

    def _judge(self, fleet: Fleet) -> None:
        async def judge() -> None:
            fleet.judge()

        self._worker.report(judge)

    def _make_probes(self) -> Probes:
        return probes(self.settings.probe, self._async_engine.make, timeout=self.settings.connect_timeout)

    def _discard(self, endpoint: Endpoint) -> None:
        self._engine.discard(endpoint)
        self._async_engine.discard(endpoint)

    def _standing(self) -> Standing:
        announced = None if self._announcement is None else self._announcement.problem
        return lifecycle.standing(list(self._registrations), announced, draining=self.in_flight.draining)

    def _serving(self) -> None:
        """The first request came, or the server has started: nothing may be started before, as an app is made before its server
        forks."""
        self._join()
        if self._provider_stacks and self.settings.service and self._office.open:
            own = ServiceUrl(self.settings.service, self.settings.namespace)
            self._worker.report(lambda: self._office.follow(own))
        if self._announcing is not None:
            self.announce(self._announcing)
        try:
            if self.settings.management_port:
                self.management.open()
        except ConfigError as problem:
            log.error("the management endpoints are not served: %s", problem)  # noqa: TRY400 - it says all

    def _silence(self) -> None:
        announced, self._announcement = self._announcement, None
        if announced is not None:
            announced.cancel()

    def _join(self) -> None:
        """This process, forked from one that was registered, serves: it is one of them. One that only computes is none, and
        does not keep what nobody serves any more."""
        with self._lock:
            inherited, self._inherited = self._inherited, []
        for port in inherited:
            try:
                if port not in [each.port for each in self._registrations]:
                    self.register(port)
            except ConfigError as problem:  # the request that brought us here is not to fail of it
                log.warning("this child of a registered process does not join it: %s", problem)

    def _left(self, registration: Registration) -> None:
        self._registrations.remove(registration)
        if self._shelf is not None:
            self._shelf.keep()

    def _share(self, port: int | None) -> None:
        """Leave our counts where those of the other processes at this port are."""
        place = f"{self.settings.service}-{self.settings.port if port is None else port}"
        directory = self.settings.state_path / "metrics" / place
        if self._shelf is None or self._shelf.directory != directory:
            self._shelf = Shared(directory, lambda: self._own_metrics().families)
        self._worker.report(self._shelf.run)

    async def _stopped(self) -> None:
        await asyncio.to_thread(self.leave, serving=False)

    def _check_pid(self) -> None:
        """Notice a fork by code that runs no fork hooks: before a lock is taken that a thread of the parent may have held."""
        if self._pid != os.getpid():
            self._forked()

    def _forked(self) -> None:
        """In a child process: whatever threads and sockets the parent has are its own; the rest is kept."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.events.forked()
        self._commons.forked()
        self._office.forked()
        if self._metered is not None:
            self._metered.forked()
        if self._shelf is not None:
            self._shelf.forked()
            self._shelf = None
        self._worker.forked()
        self._engine.forked()
        self._async_engine.forked()
        _abandoned.append(self._backend)
        self._backend = None  # opened on first use; what is wrong then is seen by who uses it
        self._probes = self._make_probes()
        self._inherited += [registration.port for registration in self._registrations]
        self._registrations = []
        self._announcement = None
        self.in_flight.forked()
        self.in_flight.on_serving = self._serving
        if self._management is not None:
            self._management.forked()
        self._closing = self._closed = False
        for view in self._all_views():
            view.abandon()


def meshes() -> list[Mesh]:
    """Those of this process."""
    return list(_meshes)


def _named_alike(settings: Settings) -> list[Registration]:
    """What this process has registered under the id that ``settings`` give, if they do."""

    def name(one: Settings) -> tuple[str, ...]:
        return (str(one.registry), one.namespace, one.service, one.instance_id)

    alike = [mesh for mesh in list(_meshes) if settings.instance_id and name(mesh.settings) == name(settings)]
    return [registration for mesh in alike for registration in mesh._registrations]


def _after_fork() -> None:
    for mesh in list(_meshes):
        mesh._forked()


os.register_at_fork(after_in_child=_after_fork)
