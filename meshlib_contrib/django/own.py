"""The process's own mesh, made of ``settings.MESH`` when it is first wanted, and what is in that setting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from django.conf import settings
from django.http import HttpResponse

from meshlib import Mesh, Settings
from meshlib.errors import ConfigError, DeadlineExceeded, Refused
from meshlib.server import Handler
from meshlib_contrib.problems import problem

C = TypeVar("C")

SOURCE: Final = "settings.MESH"
EXAMPLE: Final = 'MESH = {"SERVICE": "orders"}'
POLICIES: Final = "POLICIES"
"""What ``MESH`` may have beside the settings of the library: a list of policies for requests."""

_lock = threading.RLock()
_made: dict[Any, Any] = {}
"""What belongs to the mesh: itself, its handler, its clients."""


def get_mesh() -> Mesh:
    """The mesh of this process, always the same one. Raises :class:`meshlib.ConfigError` for what is wrong in ``MESH``."""
    return cast("Mesh", _once("mesh", lambda: Mesh(loaded())))


def handler() -> Handler[Any]:
    """What requests are served by. Raises :class:`meshlib.ConfigError`."""
    return cast("Handler[Any]", _once("handler", lambda: get_mesh().handler(problem_of, policies=policies())))


def client(cls: Callable[..., C]) -> C:
    """The client of the Protocol ``cls``. It may be taken while modules are imported: it is made when it is first used."""
    return cast("C", _Client(cls))


class _Client:
    def __init__(self, cls: Any) -> None:
        self._cls = cls

    def __getattr__(self, name: str) -> Any:
        # Whoever only looks a module over, as pytest does while it collects, asks for names of its own: no reason for a mesh.
        if name.startswith("__") or not hasattr(self._cls, name):
            raise AttributeError(f"{self._cls.__qualname__} has no {name!r}")
        return getattr(_once(self._cls, lambda: get_mesh().client(self._cls)), name)

    def __repr__(self) -> str:
        return f"<client of {self._cls.__qualname__}>"


def _once(key: Any, make: Callable[[], Any]) -> Any:
    try:
        return _made[key]
    except KeyError:
        with _lock:
            return _made[key] if key in _made else _made.setdefault(key, make())


def problem_of(error: Refused | DeadlineExceeded) -> HttpResponse:
    """The answer to a request that is refused, or for which no time is left."""
    status, headers, body = problem(error)
    return HttpResponse(body, status=status, headers=dict(headers))


def said() -> Mapping[str, Any]:
    """``settings.MESH``. Raises :class:`meshlib.ConfigError` unless it is a dict with text for keys."""
    found = getattr(settings, "MESH", {})
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ConfigError("MESH", f"is a {type(found).__name__}, not a dict of settings", source="settings", example=EXAMPLE)
    return found


def loaded() -> Settings:
    """The settings of the library. Raises :class:`meshlib.ConfigError`."""
    return Settings.load(framework={key: value for key, value in said().items() if key != POLICIES}, source=SOURCE)


def policies() -> Sequence[Any]:
    """Those that requests are under. Raises :class:`meshlib.ConfigError`."""
    found = said().get(POLICIES, ())
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ConfigError(POLICIES, f"is a {type(found).__name__}, not a list of policies", source=SOURCE, example="[shed()]")
    return found


def forget(*, setting: str = "MESH", **_: Any) -> None:
    """``MESH`` is another one, in a test: so is the mesh, from its next use on."""
    if setting != "MESH":
        return
    with _lock:
        made = _made.pop("mesh", None)
        _made.clear()
    if made is not None:
        made.close()
