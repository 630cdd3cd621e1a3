"""Registering with the port on which the server really listens, once it does: for servers that tell nobody.

The control plane looks at the listening sockets of this process until they say what to register. Nothing that is wrong is
ever registered: a ``MESH_PORT`` that is another one, or several ports without it, are an error that names them, and looked
at again, as servers come up in pieces.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from meshlib.discovery.address import has_port, is_loopback
from meshlib.discovery.listening import Listener, listeners
from meshlib.errors import ConfigError
from meshlib.settings import Settings
from meshlib.worker import Worker

log = logging.getLogger(__name__)

Look: TypeAlias = Callable[[], Iterable[Listener] | None]

SETTLED: Final = 3
"""Looks in a row that must say the same: a server that has two ports opens one after the other."""
LOOK: Final = 0.1
"""Seconds between two looks, while somebody may be waiting for it; ten times as long after :data:`PATIENCE`."""
PATIENCE: Final = 5.0
"""Seconds after which what is wrong is told."""
NOWHERE: Final = "this process does not listen on any TCP port"
LONG: Final = 30.0
"""Seconds after which that is told: it may be on its way."""


def listening() -> Iterable[Listener] | None:
    """All that listens in this process; None where the system does not tell. (Another such function may raise LookupError: this
    process serves nobody, and is not to be registered.)"""
    found = listeners()
    return None if found is None else found.values()


def chosen(settings: Settings, found: Iterable[Listener] | None) -> int | str:
    """The port to register, or in words why it is not known. ``MESH_ADVERTISE`` with a port is what others call, whatever
    listens here (a proxy in front, a unix socket)."""
    ports = {each.port for each in found or ()} - {settings.management_port}
    if settings.port and (found is None or settings.port in ports):
        return settings.port
    if has_port(settings.advertise):
        return min(ports, default=settings.port)
    if settings.port and ports:
        return f"is {settings.port}, but this process listens on {_listed(ports)}"
    if found is None:
        return "is not set, and this system does not tell on which port this process listens"
    if len(ports) > 1:
        return f"is not set, and this process listens on {_listed(ports)}: which of them is it?"
    return next(iter(ports), NOWHERE)


def _listed(ports: set[int]) -> str:
    return " and ".join(str(port) for port in sorted(ports))


class Announcement:
    """Has ``register`` called with the port, once, by the control plane. ``problem`` says why it has not been yet; empty
    afterwards, and after :meth:`cancel`."""

    def __init__(
        self,
        settings: Settings,
        worker: Worker,
        register: Callable[[int | None], object],
        look: Look = listening,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._register, self._look, self._clock = settings, register, look, clock
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._pending = True
        self._told = ""
        self.problem = "starting"
        worker.report(self._run)

    def cancel(self) -> None:
        """Do not register any more. Once it returns, nothing is registered by it that is not already. In a child process it
        does nothing."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._pending, self.problem = False, ""

    async def _run(self) -> None:
        began, before, same = self._clock(), None, 0
        while self._pending:
            try:
                found = await asyncio.to_thread(self._look)
            except LookupError:
                self.cancel()
                return
            now = chosen(self._settings, found)
            same, before = (same + 1 if now == before else 1), now
            waited = self._clock() - began
            if isinstance(now, int) and same >= SETTLED:
                self._found(now, found or ())
            elif isinstance(now, str) and waited > (LONG if now == NOWHERE else PATIENCE):
                self._tell(now)
            await asyncio.sleep(LOOK if waited < PATIENCE else LOOK * 10)

    def _found(self, port: int, found: Iterable[Listener]) -> None:
        with self._lock:
            if not self._pending:
                return
            self._pending, self.problem = False, "not registered"  # as it stays, whatever else goes wrong
            try:
                self._register(port or None)
            except ConfigError as problem:
                log.error("%s is not registered: %s", self._settings.service, problem)  # noqa: TRY400 - it says all
                return
            self.problem = ""
        if self._told:
            log.warning("%s listens on port %d now", self._settings.service, port)
        self._warn_of_loopback(port, found)

    def _tell(self, problem: str) -> None:
        self.problem = "not registered"
        if problem != self._told:
            self._told = problem
            source = self._settings.sources.get("port", "code" if self._settings.port else "default")
            text = ConfigError("MESH_PORT", problem, source=source, example="the port that others are to call")
            log.error("%s is not registered: %s", self._settings.service, text)

    def _warn_of_loopback(self, port: int, found: Iterable[Listener]) -> None:
        settings = self._settings
        routes = [host for host, _ in settings.registry.hosts]
        mine = [each.local for each in found if each.port == port]
        if mine and all(mine) and not settings.advertise and not all(is_loopback(host) for host in routes):
            log.warning("port %d listens on a loopback address: other machines cannot call %s; bind 0.0.0.0", port,
                        settings.service)  # fmt: skip
