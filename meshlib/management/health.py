"""How this process is: the checks that its app has named, and the statuses of Spring's actuator, which their watchers know."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from meshlib.errors import ConfigError
from meshlib.threads import DaemonExecutor
from meshlib.worker import perform

log = logging.getLogger(__name__)

Level: TypeAlias = Literal["UP", "UNKNOWN", "OUT_OF_SERVICE", "DOWN"]

_WORSE: Final[Mapping[Level, int]] = {"UNKNOWN": 0, "UP": 1, "OUT_OF_SERVICE": 2, "DOWN": 3}
THREADS: Final = 32
"""For checks that block. Each has one at most, however often it is asked for."""


@dataclass(frozen=True, slots=True)
class Component:
    """How one part is. ``why`` may be read by anybody; ``details`` only by who is trusted, as errors name hosts and users."""

    status: Level = "UP"
    why: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def shown(self, *, details: bool) -> dict[str, Any]:
        """As its JSON object."""
        more = {**({"reason": self.why} if self.why else {}), **(self.details if details else {})}
        return {"status": self.status, **({"details": more} if more else {})}


def worst(components: Iterable[Component]) -> Level:
    """The status of a whole."""
    found: list[Level] = [each.status for each in components]
    found.sort(key=lambda level: _WORSE[level])
    return found[-1] if found else "UP"


def serving(status: Level) -> bool:
    """Whether it is answered with 200, and not with 503."""
    return status in ("UP", "UNKNOWN")


@dataclass(frozen=True, slots=True)
class Check:
    """A check by its name. ``readiness``: while it fails, the process is not ready."""

    name: str
    function: Callable[[], Any]
    timeout: float
    readiness: bool


class Checks:
    """The checks of one process; they run on the control plane's loop (which calls :meth:`results`), what blocks in threads of
    its own, and coroutines on :attr:`home`, the loop of the app, whose connections they use."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Check] = {}
        self._down: set[str] = set()
        self.forked()

    def forked(self) -> None:
        """In a child process: what runs is the parent's."""
        self._running: dict[str, tuple[float, asyncio.Task[Component]]] = {}
        self._threads: DaemonExecutor | None = None
        self.home: asyncio.AbstractEventLoop | None = None

    def add(self, name: str, function: Callable[[], Any], *, timeout: float, readiness: bool) -> None:
        """Raises :class:`ConfigError`."""
        if not (name and name.isascii() and name.replace("_", "").replace("-", "").isalnum()) or name in RESERVED:
            raise ConfigError("check", f"{name!r:.60} is no name for one: letters, digits, _ and -", example="database")
        if not timeout > 0:
            raise ConfigError(f"check {name}", f"timeout={timeout} is not a positive number of seconds", example="2.0")
        if not callable(function):
            raise ConfigError(f"check {name}", f"{function!r:.60} cannot be called", example="def or async def")
        self._known[name] = Check(name, function, timeout, readiness)

    def named(self, *, readiness: bool) -> list[Check]:
        """All checks, or those that readiness depends on."""
        known = list(self._known.values())  # at once: an app may be adding another meanwhile
        return [check for check in known if check.readiness or not readiness]

    async def results(self, checks: Iterable[Check]) -> dict[str, Component]:
        """How they are, all asked at the same time. It takes as long as the longest time-out at most."""
        wanted = list(checks)
        found = await asyncio.gather(*(self._result(check) for check in wanted))
        for check, component in zip(wanted, found, strict=True):
            self._tell(check, component)
        return {check.name: component for check, component in zip(wanted, found, strict=True)}

    async def _result(self, check: Check) -> Component:
        """Who asks while it runs waits for the same answer: asking often costs nothing, and one that hangs has one thread."""
        begun, task = self._running.get(check.name, (0.0, None))
        if task is None or task.done():
            begun, task = self._clock(), asyncio.create_task(self._perform(check))
            self._running[check.name] = begun, task
        await asyncio.wait({task}, timeout=max(0.0, begun + check.timeout - self._clock()))
        if task.done() and not task.cancelled():
            return task.result()
        return Component("DOWN", f"no answer within {check.timeout:g} s")

    async def _perform(self, check: Check) -> Component:
        try:
            answer = await self._call(check)
        except Exception as problem:  # noqa: BLE001 - that is what it says
            return Component("DOWN", "failed", {"error": f"{type(problem).__name__}: {problem}"[:300]})
        if answer is False:
            return Component("DOWN", "failed")
        return Component("UP", "", dict(answer) if isinstance(answer, Mapping) else {})

    async def _call(self, check: Check) -> Any:
        function = check.function
        if _is_async(function):
            return await self._at_home(function, check)
        if self._threads is None:
            self._threads = DaemonExecutor(THREADS, "meshlib-check")
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, function)
        return await self._at_home(lambda: answer, check) if inspect.isawaitable(answer) else answer

    async def _at_home(self, function: Callable[[], Any], check: Check) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(check.timeout):
                return await function()

        home, work = self.home, bounded()
        if home is None or not home.is_running() or home is asyncio.get_running_loop():
            return await work
        try:
            future = perform(home, work)
        except RuntimeError:  # it was closed just now
            return await work
        async with asyncio.timeout(check.timeout):  # it may end before it has begun with it
            return await asyncio.wrap_future(future)

    def _tell(self, check: Check, component: Component) -> None:
        failed = component.status == "DOWN"
        if failed and check.name not in self._down:
            self._down.add(check.name)
            log.warning("health check %s: %s", check.name, component.details.get("error", component.why))
        elif not failed and check.name in self._down:
            self._down.discard(check.name)
            log.warning("health check %s: well again", check.name)


RESERVED: Final = frozenset({"livenessState", "readinessState", "registration"})


def _is_async(function: Callable[[], Any]) -> bool:
    bare = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(bare) or inspect.iscoroutinefunction(getattr(bare, "__call__", None))  # noqa: B004
