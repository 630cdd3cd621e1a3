"""What a provider holds: the socket it listens on, and its entry in the registry until it has left in good order."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Self

from meshlib.discovery.address import advertised
from meshlib.discovery.registration import Reconciler
from meshlib.errors import ConfigError, PortInUse
from meshlib.model import Instance, Status
from meshlib.server import InFlight
from meshlib.settings import Settings
from meshlib.worker import Worker

if TYPE_CHECKING:
    from meshlib.management import Standing

log = logging.getLogger(__name__)

PROPAGATION = 1.0
"""Seconds between deregistering and draining: what a registry's watches need to tell every consumer, with room to spare."""
PATIENCE = 10.0
"""Seconds that who finds another thread closing it waits for that, beside those that it may take."""
IN_PROCESS = {"memory": 0.1, "static": 0.0}
"""The same for registries that nobody outside this process watches."""


class Registration:
    """An entry in the registry that is kept up to date until :meth:`close`. Also a context manager.

    The processes of one machine and user that serve the same host:port have one entry in common: one of them keeps it, and
    the last one to close removes it. The status, too, is that of all: what any of them asks for holds for the others and for
    those that come later, until all have gone.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        worker: Worker,
        in_flight: InFlight,
        settings: Settings,
        on_closed: Callable[[Registration], object],
        *,
        port: int | None = None,
    ) -> None:
        self._reconciler, self._worker, self._in_flight, self._settings = reconciler, worker, in_flight, settings
        self._on_closed, self.port = on_closed, port
        self._pid = os.getpid()
        self._closing = threading.Lock()  # taken once, by who closes it
        self._closed, self._closer = threading.Event(), 0
        in_flight.draining = False
        reconciler.on_status = self._heard
        worker.report(self._begin)
        at_end(self.close)

    async def _begin(self) -> None:
        self._reconciler.start()

    @property
    def instance(self) -> Instance | None:
        """What is registered, or None before the registry has accepted it."""
        return self._reconciler.made.result() if self._reconciler.made.done() else None

    def wait(self, timeout: float = 10.0) -> Instance:
        """Wait until the registry has accepted it. Raises TimeoutError, with the reason, after ``timeout`` seconds."""
        try:
            return self._reconciler.made.result(timeout)
        except TimeoutError:
            raise TimeoutError(f"not registered after {timeout} s: {self._reconciler.problem or 'no answer'}") from None

    @property
    def registrar(self) -> bool:
        """True while this process is the one that keeps the entry."""
        return self._reconciler.registrar and not self._closing.locked() and self._pid == os.getpid()

    @property
    def hindrance(self) -> str:
        """Why this process is not ready, in a word, or nothing. That the registry is away is no reason: calls go on."""
        if self._closing.locked() or self._reconciler.status is not Status.UP:
            return "draining" if self._closing.locked() else self._reconciler.status.value
        return "" if self._reconciler.made.done() or self._reconciler.unreachable else "starting"

    def drain(self) -> None:
        """List it as draining: consumers use others as long as there are any."""
        self._wish(Status.DRAINING, draining=True)

    def maintenance(self, on: bool = True) -> None:
        """Take it out for consumers, or bring it back; it stays registered."""
        self._wish(Status.MAINTENANCE if on else Status.UP, draining=False)

    def up(self) -> None:
        """List it as ready again."""
        self._wish(Status.UP, draining=False)

    def _wish(self, status: Status, *, draining: bool) -> None:
        if self._pid != os.getpid():
            log.warning("this registration belongs to process %d, its child cannot set it to %s", self._pid, status.value)
            return
        if self._closing.locked():
            return
        self._in_flight.draining = draining
        self._worker.tell(lambda: self._reconciler.wish(status))  # which may have been stopped since the look

    def _heard(self, status: Status) -> None:
        """A sibling has changed the status of all."""
        if not self._closing.locked():
            self._in_flight.draining = status is Status.DRAINING

    def close(self) -> None:
        """Leave in the order that loses no call: ask keep-alive clients to connect elsewhere, stop re-registering and
        deregister, wait until consumers know (:data:`PROPAGATION` + ``MESH_DRAIN_WAIT``) while still serving, then wait for
        calls in flight (``MESH_DRAIN_TIMEOUT`` at most). Where other processes serve the same port, the entry is theirs now:
        nothing is deregistered, and consumers need not know. The server is to be stopped after it. A second time it only waits
        for the first; in a child process it does nothing."""
        self._leave(serving=True)

    def stopped(self) -> None:
        """The same after the server has stopped to accept: it does not wait for consumers to know."""
        self._leave(serving=False)

    def abandon(self) -> None:
        """The same for a process that is about to end whatever is in flight: it waits for nobody."""
        self._leave(serving=False, drain=False)

    def _leave(self, *, serving: bool, drain: bool = True) -> None:
        if self._pid != os.getpid():
            return
        if not self._closing.acquire(blocking=False):
            if drain and self._closer != threading.get_ident():  # not from a signal's handler, above itself
                self._closed.wait(self._settings.drain_wait + self._settings.drain_timeout + PATIENCE)
            return
        self._closer = threading.get_ident()
        try:
            self._leave_now(serving=serving, drain=drain)
        finally:
            self._closed.set()
            atexit.unregister(self.close)  # last: where another thread leaves, the end of the process is to wait for it

    def _leave_now(self, *, serving: bool, drain: bool) -> None:
        in_flight, settings = self._in_flight, self._settings
        in_flight.draining = True
        if self._stop() and serving:
            time.sleep(IN_PROCESS.get(settings.registry.scheme, PROPAGATION) + settings.drain_wait)
        if drain and not in_flight.wait(settings.drain_timeout):
            log.warning("%d requests were still in flight after %g s", len(in_flight), settings.drain_timeout)
        with suppress(ValueError):
            self._on_closed(self)

    def _stop(self) -> bool:
        """Returns whether consumers are to be given time to see it."""
        try:
            return self._worker.spawn(self._reconciler.stop).result(self._settings.registry_timeout + 1.0)
        except (TimeoutError, CancelledError) as problem:
            log.warning("deregistering did not end: %r", problem)
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def standing(registrations: list[Registration], announced: str | None, *, draining: bool) -> Standing:
    """How a process stands with the mesh. Not ready are: who leaves, or is in maintenance; who could not register yet
    (``announced`` says why, None for who is not about to), unless it is the registry that is away. Who was registered once
    stays ready, whatever becomes of the registry."""
    from meshlib.management import Component, Standing  # noqa: PLC0415 - not before somebody asks

    reasons = [*(each.hindrance for each in registrations), announced or ""]
    hindrance = "draining" if draining else next(filter(None, reasons), "")
    if not registrations:
        return Standing(hindrance, None if announced is None else Component("UNKNOWN", announced))
    instance = registrations[0].instance
    if instance is None:
        return Standing(hindrance, Component("UNKNOWN", "not accepted yet"))
    return Standing(hindrance, Component("UP", "", {"instance": str(instance.url), "address": instance.netloc}))


def at_end(close: Callable[[], None]) -> None:
    """Have ``close`` run at the end of the process, also of a child of multiprocessing: one that was forked runs no ``atexit``
    handlers."""
    atexit.register(close)
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        import_module("multiprocessing.util").Finalize(None, close, exitpriority=0)


def listen(settings: Settings, port: int | None = None, *, backlog: int = 2048) -> socket.socket:
    """See :meth:`meshlib.Mesh.listen`."""
    check_port(port)
    host, wanted = settings.host, settings.port if port is None else port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Saying TCP: asyncio turns Nagle's algorithm off only for sockets that do; for other servers, connections inherit it
    # from here. With it every answer in two pieces waits 40 ms for the consumer's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, wanted))
        listener.listen(backlog)
    except OSError as problem:
        listener.close()
        raise _cannot_listen(settings, problem, wanted, port) from None
    return listener


def _cannot_listen(settings: Settings, problem: OSError, wanted: int, port: int | None) -> ConfigError:
    text = f"cannot listen on {settings.host}:{wanted}: {problem.strerror}"
    if problem.errno not in (errno.EADDRINUSE, errno.EACCES):
        source = settings.source("host")
        return ConfigError("MESH_HOST", text, source=source, example="0.0.0.0, or an address of this machine")
    kind = PortInUse if problem.errno == errno.EADDRINUSE else ConfigError
    source = "code" if port is not None else settings.source("port")
    return kind("MESH_PORT", text, source=source, example="another port, or 0 for any free one")


def check_port(port: int | None) -> None:
    """Raise :class:`ConfigError` for a ``port`` given in code that is none."""
    if port is not None and not (type(port) is int and 0 <= port < 65536):
        raise ConfigError("port", f"{str(port)[:20]!r} is not a port (0 to 65535)", example="8080")


def check_once(settings: Settings, port: int | None, taken: list[int | None], alike: list[Registration]) -> None:
    """Raise :class:`ConfigError` unless a process that has registered the ports ``taken``, and ``alike`` under the same
    explicit id, can register ``port``: here, and not in the background, is said what is known before the registry is asked."""
    address = advertised(settings, port, "")
    if alike:
        problem = f"{settings.instance_id!r} is registered by this process already, and is the id of one instance"
        source = settings.sources.get("instance_id", "code")
        raise ConfigError("MESH_INSTANCE_ID", problem, source=source, example="unset, or another Mesh with another id")
    if address in [advertised(settings, each, "") for each in taken]:
        raise ConfigError("port", f"{address[1]} is registered by this process already", example="close() that one first")
