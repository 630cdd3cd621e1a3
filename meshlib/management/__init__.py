"""Management endpoints: liveness, readiness, health by Spring's conventions, info, metrics.

:class:`Management` is what a mesh has of it: ``mesh.management``. It knows neither calls nor registries; how the process
stands is told by who made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias

from meshlib.management import mounting
from meshlib.management.health import Component
from meshlib.management.listener import Listener
from meshlib.management.pages import Answer, Ask, Measured, Pages, Standing
from meshlib.server import AsgiApp, WsgiApp
from meshlib.settings import Settings
from meshlib.threads import lock
from meshlib.worker import Worker

__all__ = ["Answer", "Ask", "Component", "Management", "Standing"]

Function: TypeAlias = Callable[[], Any]

PATIENCE = 30.0
"""Seconds after which a page is given up that the control plane does not make: it should have been made long ago."""


class Management:
    """The management pages of one process, and what its app adds to them."""

    def __init__(
        self,
        settings: Settings,
        worker: Worker,
        standing: Callable[[], Standing],
        *,
        touched: Callable[[], object] = lambda: None,
        metrics: Callable[[], Measured] | None = None,
    ) -> None:
        self._settings, self._worker, self._touched = settings, worker, touched
        self._pages = Pages(settings, worker, standing, metrics)
        self._listener: Listener | None = None
        self._lock = lock()

    # -- for apps

    def check(self, name: str, function: Function | None = None, *, timeout: float = 2.0, readiness: bool = True) -> Any:
        """Make ``function`` the health check ``name``; without it, a decorator. It may block or be async; it takes no
        arguments, and is well unless it raises, returns False, or takes more than ``timeout`` seconds. A mapping that it
        returns are details. With ``readiness=False`` it shows in the health, and keeps nobody from calling this process.
        Raises :class:`ConfigError`."""

        def added(function: Function) -> Function:
            self._pages.checks.add(name, function, timeout=timeout, readiness=readiness)
            return function

        return added if function is None else added(function)

    def info(self, name: str, value: Any) -> None:
        """Have ``value``, or what it returns when called, under ``name`` in ``/actuator/info``."""
        self._pages.info[name] = value

    def examine(self) -> Mapping[str, Component]:
        """Make all checks now, and say how each was."""
        checks = self._pages.checks
        return self._worker.spawn(lambda: checks.results(checks.named(readiness=False))).result(PATIENCE)

    # -- for what serves them

    @property
    def paths(self) -> Collection[str]:
        """Where the app is to serve them: nowhere if they are off, or have a port of their own."""
        return () if self._settings.management_port else self._pages.paths.keys()

    def answer(self, ask: Ask) -> Answer:
        """The answer, in the caller's thread."""
        self._touched()
        answer = self._pages.answer(ask)
        return answer.result(PATIENCE) if isinstance(answer, Future) else answer

    async def aanswer(self, ask: Ask) -> Answer:
        """The same in a task. Coroutines among the checks will run on its loop."""
        self._touched()
        self.at_home()
        answer = self._pages.answer(ask)
        return await asyncio.wrap_future(answer) if isinstance(answer, Future) else answer

    def at_home(self) -> None:
        """The running loop is the app's: what its async checks use, may belong to it."""
        self._pages.checks.home = asyncio.get_running_loop()

    def wsgi(self, app: WsgiApp, pages: WsgiApp | None = None) -> WsgiApp:
        """``app`` with the pages beside it. ``pages`` serves them, if it is not this object itself."""
        return mounting.wsgi(app, self.paths, pages or mounting.wsgi_pages(self.answer))

    def asgi(self, app: AsgiApp, but: Callable[[], Collection[str]] = tuple) -> AsgiApp:
        """The same for ASGI; paths that ``but`` names are the app's own."""
        return mounting.asgi(app, self.paths, self.aanswer, but, self.at_home)

    # -- a port of their own

    def open(self) -> None:
        """Serve them at ``MESH_MANAGEMENT_PORT``, if there is one and nobody does it yet. Raises :class:`PortInUse`."""
        if not self._settings.management_port or not self._pages.paths:
            return
        with self._lock:  # the system lets one process have the port twice
            if self._listener is None:
                self._listener = Listener(self._settings, self._answer_there)
                self._worker.report(self._listener.serve)

    async def _answer_there(self, ask: Ask) -> Answer:
        answer = self._pages.answer(ask)
        return await asyncio.wrap_future(answer) if isinstance(answer, Future) else answer

    def close(self) -> None:
        """Stop to serve them there; :meth:`open` begins again."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def forked(self) -> None:
        """In a child process: what listens and runs is the parent's."""
        self._lock = lock()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.forked()
        self._pages.checks.forked()
