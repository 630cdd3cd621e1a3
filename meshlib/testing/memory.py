"""A whole mesh inside a test: the real stack and control plane, apps of the process as instances, time as a number."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from typing import Any, TypeVar

from meshlib.backends import memory
from meshlib.balance.pickers import Choose, Picker
from meshlib.balance.tiers import Pool
from meshlib.client.declare import Method
from meshlib.client.stub import called, declaration_of
from meshlib.discovery.follow import Surroundings
from meshlib.discovery.probe import Probes
from meshlib.discovery.view import View
from meshlib.errors import ConfigError
from meshlib.mesh import Mesh
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.mounts import AsyncMeshTransport, MeshTransport
from meshlib.policies.base import Policy, Site
from meshlib.settings import Settings
from meshlib.testing.apps import App, Hosted, Portal
from meshlib.testing.engine import VirtualAsyncEngine, VirtualEngine, only_asyncio
from meshlib.testing.mock import Mock
from meshlib.testing.provider import Faults, Provider, Received, answers, facts, reach
from meshlib.testing.timeline import Timeline

C = TypeVar("C")

_numbers = count()


class MemoryMesh(Mesh):
    """A :class:`~meshlib.Mesh` for tests. Calls go through everything that they go through elsewhere, to apps of this process
    (:meth:`add`), over no network; time is virtual: it passes by :meth:`advance`, and where a policy, a time-out or a slow
    instance lets a call wait, which takes no real time.

    ``settings`` are those of :class:`~meshlib.Settings` by name; the environment is not looked at. Unless they say otherwise
    instances are picked in turn, beginning with number 0, so that who is called is known. Nothing is kept on disk.
    """

    def __init__(self, **settings: Any) -> None:
        name = f"testing-{next(_numbers)}"
        self.timeline = Timeline()
        self._clock = self.timeline.clock
        ahead = time.time() - self._clock()
        self._wall = lambda: ahead + self._clock()
        self._providers: dict[str, list[Provider]] = {}
        self._mocks: dict[type, Mock[Any]] = {}
        self._portal, self._lot = Portal(), random.Random(0)
        self._store, self._store_name = memory.store(name), name
        self._store.clock = self._clock
        state = Path(tempfile.gettempdir()) / f"meshlib-{name}-{secrets.token_hex(8)}"  # made by whoever writes there
        super().__init__(Settings(**{"registry": f"memory://{name}", "state_dir": str(state), **settings}))
        if "picker" not in settings:
            self._default_picker = _in_turn
        self._worker = self.timeline.plane
        self._engine = VirtualEngine(self.settings, self._reached, self.timeline)
        self._async_engine = VirtualAsyncEngine(self.settings, self._reached, self.timeline)

    # -- providers

    def add(self, service: str, app: App, *, instances: int = 1, **known: Any) -> list[Instance]:
        """List ``instances`` (one more after each call) of ``service``, all of them ``app``: a WSGI app, an ASGI app, or a
        function of the request (``httpx2.Request``), ``def`` or ``async def``, that returns a response, text, bytes or
        anything that becomes JSON. ``known`` is what they say of themselves: ``version``, ``zone``, ``weight``, ``labels``.

        An app works in real time; ``mesh.sleep()`` lets virtual time pass in it. Raises :class:`ConfigError`."""
        target = ServiceUrl.parse(service, namespace=self.settings.namespace)
        hosted = Hosted(app, self._clock, self._portal)
        there = self._providers.setdefault(str(target.name), [])
        made = []
        for number in range(len(there), len(there) + instances):
            instance = facts(target.service, number, target.namespace, generation=_generation(), **known)
            there.append(Provider(number, instance, hosted, self.timeline))
            self._list(instance)
            made.append(instance)
        return made

    def remove(self, service: str, instance: int | None = None) -> None:
        """Take the instance of this number (None: all) out in good order: it is unlisted, then it stops."""
        for provider in self._which(service, instance):
            provider.faults = Faults(dead=True)
            self._list(provider.instance, until=-math.inf)

    def received(self, service: str, instance: int | None = None) -> list[Received]:
        """The requests that reached the apps of ``service`` (or one instance of it), in order of time."""
        found = [one for provider in self._which(service, instance) for one in provider.received]
        return sorted(found, key=lambda one: one.at)

    # -- faults

    def kill(self, service: str, instance: int | None = None) -> None:
        """The process of that instance (None: of all) is killed: it refuses connections; its entry stays in the registry until
        ``MESH_TTL`` is over."""
        for provider in self._which(service, instance):
            provider.faults = Faults(dead=True)
            self._list(provider.instance, until=self._clock() + self.settings.ttl)

    def revive(self, service: str, instance: int | None = None) -> None:
        """It is started again: another process at the same address, with nothing wrong, listed at once."""
        for provider in self._which(service, instance):
            provider.faults = Faults()
            provider.instance = replace(provider.instance, generation=_generation())
            self._list(provider.instance)

    def slow(self, service: str, instance: int | None = None, seconds: float = 1.0) -> None:
        """Each of its answers takes ``seconds`` of virtual time from now on."""
        for provider in self._which(service, instance):
            provider.faults.delay = _seconds(seconds)

    def hang(self, service: str, instance: int | None = None) -> None:
        """It takes requests and connections, and says nothing: a process that is stopped."""
        for provider in self._which(service, instance):
            provider.faults.hangs = True

    def flap(self, service: str, instance: int | None = None, *, every: float = 1.0) -> None:
        """It refuses connections for ``every`` seconds, beginning now, then is there for as many, and so on."""
        if _seconds(every) <= 0:
            raise ValueError("every: 0 s is no interval")
        for provider in self._which(service, instance):
            provider.faults.every, provider.faults.since = every, self._clock()

    def fail(self, service: str, instance: int | None = None, *, status: int = 500, share: float = 1.0) -> None:
        """A ``share`` (0 to 1) of its requests is answered with ``status``, spread evenly, without asking the app."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share={share!r} is not in 0..1")
        for provider in self._which(service, instance):
            provider.faults.status, provider.faults.share, provider.faults.owed = status, share, 0.0

    def partition_registry(self) -> None:
        """The registry answers nobody any more."""
        self._store.set_down(True)
        self.timeline.settle()

    def heal_registry(self) -> None:
        """It answers again; followers see it when they try again, within a second."""
        self._store.set_down(False)
        self.timeline.settle()

    # -- time

    @property
    def now(self) -> float:
        """The virtual time, monotonic seconds."""
        return self._clock()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass: what the control plane would do meanwhile is done, and waiting threads go on. Where tasks wait
        for it, ``await mesh.aadvance()``."""
        self.timeline.advance(seconds)

    async def aadvance(self, seconds: float) -> None:
        """The same where tasks wait: each goes on at its time, before more of it passes."""
        if asyncio._get_running_loop() is None:
            only_asyncio()
        await self.timeline.aadvance(seconds)

    def frozen(self) -> AbstractContextManager[None]:
        """Within it calls that wait do so until :meth:`advance` lets time pass."""
        return self.timeline.frozen()

    def sleep(self, seconds: float) -> None:
        """What ``time.sleep`` would be: for apps that take their time."""
        self.timeline.wait(_seconds(seconds))

    async def asleep(self, seconds: float) -> None:
        """What ``asyncio.sleep`` would be."""
        await self.timeline.await_(_seconds(seconds))

    # -- consumers

    def mock(self, cls: Callable[..., C]) -> Mock[C]:
        """Stub answers in place of the client ``cls``: everybody who has it from :meth:`client`, before or after, gets them."""
        declaration = declaration_of(cls)
        found: Mock[C] | None = self._mocks.get(cls)  # type: ignore[call-overload]
        if found is None:
            found = self._mocks[cls] = Mock(cls, declaration)  # type: ignore[index]
        return found

    def client(self, cls: Callable[..., C], *, name: str | ServiceUrl | None = None) -> C:
        """See :meth:`meshlib.Mesh.client`; the mock, where there is one."""
        real = super().client(cls, name=name)

        def current() -> Any:
            mock = self._mocks.get(cls)  # type: ignore[call-overload]
            return real if mock is None else mock.client

        body = {
            method.name: called(_forwarded(method, current, self.timeline), cls, method.name)
            for method in declaration_of(cls).methods
        }
        body["__repr__"] = lambda _self: repr(current())
        return type(cls.__name__, (type(real),), body)()  # type: ignore[no-any-return]

    def transport(
        self, name: str | ServiceUrl | None = None, *, picker: str | Picker | None = None, policies: Iterable[Policy] = ()
    ) -> MeshTransport:
        """See :meth:`meshlib.Mesh.transport`."""
        return _Transport(self.timeline, self._stacks(name, picker, policies), self._engine)

    def atransport(
        self, name: str | ServiceUrl | None = None, *, picker: str | Picker | None = None, policies: Iterable[Policy] = ()
    ) -> AsyncMeshTransport:
        """See :meth:`meshlib.Mesh.atransport`."""
        return _AsyncTransport(self.timeline, self._stacks(name, picker, policies), self._async_engine)

    def snapshot(self, name: str | ServiceUrl, *, timeout: float | None = None) -> Snapshot | None:
        """See :meth:`meshlib.Mesh.snapshot`; the time-out is virtual."""
        view = self.view(name)
        wait = view.attend()
        self.timeline.settle()
        if wait is not None:
            self.timeline.wait(wait.timeout if timeout is None else timeout, wait.future)
        return view.snapshot

    def view(self, name: str | ServiceUrl) -> View:
        """See :meth:`meshlib.Mesh.view`."""
        self.timeline.settle()
        return super().view(name)

    def close(self) -> None:
        """See :meth:`meshlib.Mesh.close`."""
        self.timeline.end()
        super().close()
        self._portal.close()

    # -- wiring

    def _site(self, *where: Any, **more: Any) -> Site:
        return replace(super()._site(*where, **more), uniform=self._lot.random)

    def _surroundings(self) -> Surroundings:
        return replace(super()._surroundings(), store=None, uniform=self._lot.random)

    def _make_probes(self) -> Probes:
        return Probes(lambda instance: reach(self._at(instance)), lambda instance: answers(self._at(instance)))

    def _at(self, instance: Instance) -> Provider | None:
        service = str(instance.url.name)
        return next((one for one in self._providers.get(service, ()) if one.instance.id == instance.id), None)

    def _reached(self, instance: Instance) -> Provider:
        provider = self._at(instance)
        if provider is None:
            raise ConfigError(instance.id, "is listed, and no app was added for it", example='mesh.add("orders", app)')
        return provider

    def _which(self, service: str, number: int | None) -> list[Provider]:
        target = str(ServiceUrl.parse(service, namespace=self.settings.namespace).name)
        there = self._providers.get(target)
        if there is None:
            known = ", ".join(self._providers) or "none"
            raise ConfigError(
                service, f"was not added to this mesh (which has: {known})", example=f'mesh.add("{service}", app)'
            )
        if number is None:
            return there
        if not 0 <= number < len(there):
            raise ConfigError(f"{service} number {number}", f"is not there: it has 0 to {len(there) - 1}", example="0")
        return [there[number]]

    def _list(self, instance: Instance, *, until: float = math.inf) -> None:
        """In the registry until then (monotonic), whether it can be reached now or not."""
        key = (instance.namespace, instance.service, instance.id)
        with self._store.lock:
            if until > self._clock():
                self._store.instances[key] = (instance, until)
            else:
                self._store.instances.pop(key, None)
            self._store.touch()
        self.timeline.settle()


def _in_turn(pool: Pool) -> Choose:
    """What ``round_robin`` is, which begins anywhere."""
    turns = cycle(pool.endpoints)
    return lambda _call: next(turns)


def _forwarded(method: Method, current: Callable[[], Any], timeline: Timeline) -> Callable[..., Any]:
    """The declared method as that of whoever answers now; a caller is busy for all of it but its waits."""
    name = method.name
    if method.is_async:

        async def coroutine(_self: object, *args: Any, **kwargs: Any) -> Any:
            with timeline.busy():
                return await getattr(current(), name)(*args, **kwargs)

        return coroutine

    def blocking(_self: object, *args: Any, **kwargs: Any) -> Any:
        with timeline.busy():
            return getattr(current(), name)(*args, **kwargs)

    return blocking


class _Transport(MeshTransport):
    def __init__(self, timeline: Timeline, *inside: Any) -> None:
        super().__init__(*inside)
        self._timeline = timeline

    def handle_request(self, request: Any) -> Any:
        with self._timeline.busy():
            return super().handle_request(request)


class _AsyncTransport(AsyncMeshTransport):
    def __init__(self, timeline: Timeline, *inside: Any) -> None:
        super().__init__(*inside)
        self._timeline = timeline

    async def handle_async_request(self, request: Any) -> Any:
        with self._timeline.busy():
            return await super().handle_async_request(request)


def _seconds(value: float) -> float:
    if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError(f"{value!r} is not a number of seconds")
    return float(value)


def _generation() -> str:
    return secrets.token_hex(8)
