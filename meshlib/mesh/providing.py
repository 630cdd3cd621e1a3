"""Serving: the middleware, the registration, and what is told of this process."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from meshlib import lifecycle, server
from meshlib.discovery.registration import Reconciler
from meshlib.errors import ConfigError
from meshlib.lifecycle import Registration
from meshlib.metrics.collect import collected
from meshlib.metrics.families import Metrics
from meshlib.metrics.server import Request, counted_asgi, counted_wsgi
from meshlib.metrics.shared import Shared
from meshlib.model import ServiceUrl
from meshlib.policies.base import Policy
from meshlib.settings import Settings
from meshlib.transport import MakeAsyncTransport, MakeTransport

if TYPE_CHECKING:  # what only providers need is loaded when there is one
    from meshlib.announcement import Announcement, Look
    from meshlib.management import Management, Standing


from meshlib.mesh.consuming import Consuming

log = logging.getLogger(__name__)

R = TypeVar("R")

meshes: weakref.WeakSet[Providing] = weakref.WeakSet()
"""Those of this process."""


class Providing(Consuming):
    """A process that others call by name."""

    def __init__(
        self, settings: Settings | None, transport: MakeTransport | None, async_transport: MakeAsyncTransport | None
    ) -> None:
        super().__init__(settings, transport, async_transport)
        self.in_flight = server.InFlight()
        self.in_flight.on_serving = self._serving
        self._shelf: Shared | None = None
        self._management: Management | None = None
        self._provider_stacks: weakref.WeakSet[server.ProviderStack] = weakref.WeakSet()
        self._registrations: list[Registration] = []
        self._inherited: list[int | None] = []  # ports that the parent of this process had registered
        self._announcement: Announcement | None = None
        self._announcing: Look | None = None  # how to see where this process listens, once it serves
        self._said = False

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

    def announce(self, look: Look | None = None, *, at_once: bool = True) -> None:
        """Register with the port on which this process really listens, as soon as it does: :meth:`register` for servers that
        do not tell theirs. It does nothing without ``MESH_SERVICE``. With ``at_once=False`` it begins when the first request
        comes, or the ASGI lifespan has started. Where ``MESH_PORT`` is another port, or is not set and this process listens on
        several, nothing is registered, and the log says so. Call it as often as you like."""
        if not self.settings.service:
            self._nameless()
            return
        from meshlib.announcement import Announcement, listening  # noqa: PLC0415 - see above

        self._check_pid()
        with self._lock:  # of two that announce at once, one would be cancelled by nobody
            if self._announcement is not None or self._registrations:
                return
            self._announcing = look = look or listening
            if not at_once:
                self.in_flight.on_serving = self._serving
                return
            self._announcement = Announcement(self.settings, self._worker, self._register, look)
        lifecycle.at_end(self._silence)  # else it might register a process that has just left

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

    def metrics(self) -> Metrics:
        """What this process has counted since it began (a forked one: since the fork), and how things stand: calls, requests,
        events of policies, instances. ``metrics().prometheus()`` is the text to be scraped. With ``MESH_METRICS=off``, calls
        and requests are not counted; with ``shared``, and from :meth:`register` on, the counts are those of all processes that
        serve the port (it reads files then), the others' as of 5 seconds ago at most."""
        self._check_pid()
        return self._own_metrics() if self._shelf is None else Metrics(self._shelf.together())

    # -- wiring

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

    def _own_metrics(self) -> Metrics:
        return collected(self._metered, self.events, self._all_views(), self._registrations, len(self.in_flight))

    def _provider(self, policies: Iterable[Policy]) -> server.ProviderStack:
        own = ServiceUrl(self.settings.service, self.settings.namespace)
        # Apart from the limits that consumers of this service keep on this host.
        site = replace(self._site(own), state_dir=lambda: self.settings.state_path / "provider")
        stack = server.ProviderStack(site, policies, service=own)
        with self._lock:
            self._provider_stacks.add(stack)
        self._office.provide(stack, own)
        return stack

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

    def _forked(self) -> None:
        super()._forked()
        if self._shelf is not None:
            self._shelf.forked()
            self._shelf = None
        self._inherited += [registration.port for registration in self._registrations]
        self._registrations = []
        self._announcement = None
        self.in_flight.forked()
        self.in_flight.on_serving = self._serving
        if self._management is not None:
            self._management.forked()


def _named_alike(settings: Settings) -> list[Registration]:
    """What this process has registered under the id that ``settings`` give, if they do."""

    def name(one: Settings) -> tuple[str, ...]:
        return (str(one.registry), one.namespace, one.service, one.instance_id)

    alike = [mesh for mesh in list(meshes) if settings.instance_id and name(mesh.settings) == name(settings)]
    return [registration for mesh in alike for registration in mesh._registrations]
