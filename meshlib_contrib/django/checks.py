"""``manage.py check``: what can be wrong with the mesh of a project, each by its id, with what to do about it.

E001 MESH is no dict · E002 a setting is wrong · E003 the middleware stands twice · E004 POLICIES is wrong
W001 no middleware · W002 the middleware stands too low · W003 nobody can tell the port · W004 a port, but no service
W005 DEBUG, and a registry that others use · W006 a setting outside of MESH
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Warned

from meshlib import Settings
from meshlib.discovery.listening import listeners
from meshlib.errors import ConfigError
from meshlib.server.order import suitable
from meshlib_contrib.django import own

log = logging.getLogger(__name__)

PATH: Final = "meshlib_contrib.django.MeshMiddleware"
PATHS: Final = (PATH, "meshlib_contrib.django.middleware.MeshMiddleware")
PRIVATE: Final = ("local", "memory", "static")
"""Registries in which nobody else looks for this process."""

_told = False


def checks(**_: Any) -> list[CheckMessage]:
    """All of them, for Django."""
    global _told  # noqa: PLW0603 - once per process, as Django's own
    _told = True
    return list(_found())


def at_start() -> None:
    """A process begins to serve, under a server for which nobody has run the checks. Raises :class:`meshlib.ConfigError` for
    what is an error, and logs the rest."""
    if _told:
        return
    for message in checks():
        if isinstance(message, Error):
            raise ConfigError(message.id or "", message.msg, source="settings",
                              example=(message.hint or "").removeprefix("For example "))  # fmt: skip
        log.warning("%s: %s (%s)", message.id, message.msg, message.hint)


def at_first_request(**_: Any) -> None:
    """The same where there is no middleware that would have done it."""
    try:
        at_start()
    except ConfigError as problem:  # not the request's fault; whoever uses the mesh gets it
        log.error("%s", problem)  # noqa: TRY400 - it says all


def places() -> list[int]:
    """Where in ``MIDDLEWARE`` ours stands."""
    return [place for place, path in enumerate(settings.MIDDLEWARE) if path in PATHS]


def _found() -> Iterator[CheckMessage]:
    try:
        loaded = own.loaded()
    except ConfigError as problem:
        yield _error("E001" if problem.name == "MESH" else "E002", problem)
        return
    try:
        suitable(own.policies())
    except ConfigError as problem:
        yield _error("E004", problem)
    yield from _of_middleware(loaded)
    yield from _of_provider(loaded)


def _error(number: str, problem: ConfigError) -> Error:
    text = f"{problem.name} (from {problem.source}): {problem.problem}"
    return Error(text, hint=f"For example {problem.example}" if problem.example else None, id=f"meshlib.{number}")


def _of_middleware(loaded: Settings) -> Iterator[CheckMessage]:
    found = places()
    if not found and loaded.service:
        yield Warned(
            "MESH has a SERVICE, but MIDDLEWARE lacks MeshMiddleware: this process is not registered, and serves no health",
            hint=f"Make {PATH!r} the first of MIDDLEWARE", id="meshlib.W001",
        )  # fmt: skip
    if len(found) > 1:
        yield Error("MeshMiddleware stands in MIDDLEWARE more than once: every request would be counted so many times",
                    hint=f"Keep the first {PATH!r}", id="meshlib.E003")  # fmt: skip
    above = [path for path in settings.MIDDLEWARE[: min(found, default=0)] if path.startswith("django.")]
    if above:
        yield Warned(
            f"MeshMiddleware stands below {above[0]}: probes that it redirects, refuses by their Host or writes sessions for "
            "do not reach the health pages, and what it answers itself is not counted",
            hint=f"Make {PATH!r} the first of MIDDLEWARE", id="meshlib.W002",
        )  # fmt: skip


def _of_provider(loaded: Settings) -> Iterator[CheckMessage]:
    if loaded.service and not loaded.port and listeners() is None:
        yield Warned("MESH has a SERVICE and no PORT, and this system does not tell on which port a process listens",
                      hint='Say it: MESH = {"PORT": 8000, ...} or MESH_PORT=8000', id="meshlib.W003")  # fmt: skip
    if loaded.port and not loaded.service:
        yield Warned("MESH has a PORT, but no SERVICE: nothing is registered",
                      hint=f"Name it: {own.EXAMPLE} or MESH_SERVICE=orders", id="meshlib.W004")  # fmt: skip
    if settings.DEBUG and loaded.service and loaded.registry.scheme not in PRIVATE:
        yield Warned(
            f"DEBUG is on, and {loaded.service!r} is registered at {loaded.registry}: others call this process, see its debug "
            "pages, and lose it for a moment whenever the development server reloads",
            hint="Turn DEBUG off, or use MESH_REGISTRY=local:// for development", id="meshlib.W005",
        )  # fmt: skip
    for name in sorted(name for name in dir(settings) if name.startswith("MESH_")):
        yield Warned(f"settings.{name} is not read: only the dict MESH is, and the environment",
                      hint=f"MESH = {{{name.removeprefix('MESH_')!r}: ...}}", id="meshlib.W006")  # fmt: skip
