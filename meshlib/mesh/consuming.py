"""Calling: clients, transports, and the stacks of policies that their calls pass."""

from __future__ import annotations

import socket
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import httpx2

from meshlib.balance.pickers import Picker, named
from meshlib.balance.tiers import Here
from meshlib.client.declare import Method
from meshlib.client.explain import Explanation, ways
from meshlib.client.stack import Stack, innermost
from meshlib.client.stub import AsyncStub, SyncStub, declaration_of, implement
from meshlib.discovery.view import View
from meshlib.flow import Call, Next
from meshlib.governance.policies import Operator
from meshlib.mesh.plane import Plane
from meshlib.metrics.collect import Metered
from meshlib.model import ServiceUrl
from meshlib.mounts import AsyncMeshClient, AsyncMeshTransport, MeshClient, MeshTransport
from meshlib.policies.base import Commons, Policy, Site, checked, overlaid
from meshlib.policies.breaker import Breaker
from meshlib.policies.circuit_breaker import breakers_in
from meshlib.settings import Settings
from meshlib.transport import MakeAsyncTransport, MakeTransport

C = TypeVar("C")

HOSTS = 256
"""Hosts whose stacks a mounted transport keeps: mounted on ``all://``, it meets whatever hosts its users name."""


class Consuming(Plane):
    """A process that calls others by name."""

    def __init__(
        self, settings: Settings | None, transport: MakeTransport | None, async_transport: MakeAsyncTransport | None
    ) -> None:
        super().__init__(settings, transport, async_transport)
        self._commons = Commons()
        self._metered = None if self.settings.metrics == "off" else Metered()
        self._own: View | None = None  # of our own service, once somebody shares a quota with its other instances
        self._stacks_known: weakref.WeakSet[Stack] = weakref.WeakSet()
        self._default_picker = named(self.settings.picker, source=self.settings.sources.get("picker", "default"))
        self._here = Here(self.settings.zone, f"{self.settings.service}@{socket.gethostname()}:{self.settings.port}")

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

    def _forked(self) -> None:
        super()._forked()
        self._commons.forked()
        if self._metered is not None:
            self._metered.forked()
