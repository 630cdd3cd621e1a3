"""What this process knows of services, and the control plane that keeps it so."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable

from meshlib.backends import Backend, KeyValue, Registry, open_backend
from meshlib.balance.endpoint import Endpoint
from meshlib.balance.fleet import Fleet
from meshlib.balance.outliers import Rules
from meshlib.discovery.follow import Follower, Surroundings
from meshlib.discovery.probe import Probes, probes, restore
from meshlib.discovery.store import SnapshotStore
from meshlib.discovery.view import View
from meshlib.events import Events
from meshlib.governance.office import Office
from meshlib.model import ServiceUrl, Snapshot
from meshlib.settings import Settings
from meshlib.threads import lock
from meshlib.transport import AsyncEngine, Engine, MakeAsyncTransport, MakeTransport
from meshlib.worker import Worker

log = logging.getLogger(__name__)

# Of the parent, in a child process: closed there, it might reach into what the parent goes on using.
_abandoned: list[object] = []


class Plane:
    """Views of services, the engines that reach their instances, and the background loop on which registry, documents and
    probes are followed. It is there as soon as it is used, again after a fork, and again after it was stopped."""

    # Monotonic seconds and those since the epoch; a mesh for tests has a time of its own.
    _clock: Callable[[], float] = staticmethod(time.monotonic)
    _wall: Callable[[], float] = staticmethod(time.time)

    def __init__(
        self, settings: Settings | None, transport: MakeTransport | None, async_transport: MakeAsyncTransport | None
    ) -> None:
        self.settings = settings or Settings.load()
        self.events = Events()
        self._engine = Engine(self.settings, transport)
        self._async_engine = AsyncEngine(self.settings, async_transport)
        self._worker = Worker()
        self._probes = self._make_probes()
        self._backend: Backend | None = open_backend(self.settings)
        self._pid = os.getpid()
        # A view lives while a client holds it or it is watched: hosts that were called once leave nothing behind.
        self._views: weakref.WeakValueDictionary[ServiceUrl, View] = weakref.WeakValueDictionary()
        self._office = Office(self.settings, self.events, self._kv, clock=self._clock, wall=self._wall)
        self._lock = lock()
        self._closing = self._closed = False
        self._rules = Rules(
            seconds=self.settings.ejection_time, share=self.settings.ejection_share, panic=self.settings.panic_threshold
        )

    # -- what is known

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

    # -- how it is kept

    def _all_views(self) -> list[View]:
        with self._lock:
            return list(self._views.values())

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

    def _discard(self, endpoint: Endpoint) -> None:
        self._engine.discard(endpoint)
        self._async_engine.discard(endpoint)

    def _make_probes(self) -> Probes:
        return probes(self.settings.probe, self._async_engine.make, timeout=self.settings.connect_timeout)

    def _check_pid(self) -> None:
        """Notice a fork by code that runs no fork hooks: before a lock is taken that a thread of the parent may have held."""
        if self._pid != os.getpid():
            self._forked()

    def _stop(self) -> bool:
        """End the control plane, and keep what is known. False when another thread is at it."""
        with self._lock:
            if self._closing:
                return False
            self._closing = True  # until nothing of the old control plane is left, nobody begins to follow
        try:
            self._worker.stop(last=self._close_backend)  # after whoever uses it
            self._probes = self._make_probes()
            for view in self._all_views():
                view.close()
        finally:
            self._closing, self._closed = False, True
        return True

    def _forked(self) -> None:
        """In a child process: whatever threads and sockets the parent has are its own; the rest is kept."""
        self._pid = os.getpid()
        self._lock = lock()
        self.events.forked()
        self._office.forked()
        self._worker.forked()
        self._engine.forked()
        self._async_engine.forked()
        _abandoned.append(self._backend)
        self._backend = None  # opened on first use; what is wrong then is seen by who uses it
        self._probes = self._make_probes()
        self._closing = self._closed = False
        for view in self._all_views():
            view.abandon()
