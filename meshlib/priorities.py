"""How important a request is: said by its caller in a header, known to the task or thread that serves it, and told to the
next hop, as its deadline is.

It is the caller's own word. Three levels are few enough that everybody means the same by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from meshlib.errors import ConfigError
from meshlib.flow import RawHeaders

HEADER: Final = "X-Mesh-Priority"
CRITICAL: Final = "critical"
"""Somebody is harmed when it fails: a payment, a health check."""
NORMAL: Final = "normal"
"""What is not said."""
SHEDDABLE: Final = "sheddable"
"""It may fail: a prefetch, a batch that is tried again."""
LEVELS: Final = (CRITICAL, NORMAL, SHEDDABLE)

_RAW: Final = HEADER.encode("ascii")
_FIELD: Final = _RAW.lower()
_WIRE: Final = {level: level.encode("ascii") for level in LEVELS}
_current: ContextVar[str] = ContextVar("meshlib.priority", default="")


def inherited() -> str:
    """The level of what is being done here, "" where nobody said."""
    return _current.get()


def enter(level: str) -> str:
    """Let calls made from here on have ``level``; returns what held before, to be entered again."""
    previous = _current.get()
    if previous != level:
        _current.set(level)
    return previous


@contextmanager
def priority(level: str) -> Iterator[None]:
    """Within it, calls say that they are of ``level``: ``"critical"``, ``"normal"`` or ``"sheddable"``. Raises
    :class:`ConfigError` for any other."""
    if level not in LEVELS:
        raise ConfigError("priority", f"{level!r:.40} is none of {', '.join(LEVELS)}", example='priority("sheddable")')
    previous = enter(level)
    try:
        yield
    finally:
        _current.set(previous)


def level_of(text: str) -> str:
    """What the header's value says, "" for what is no level."""
    level = text.strip().lower()
    return level if level in LEVELS else ""


def marked(headers: RawHeaders, level: str) -> RawHeaders:
    """``headers`` with ``level``, if they do not say one themselves."""
    if any(len(name) == len(_FIELD) and name.lower() == _FIELD for name, _ in headers):
        return headers
    return [*headers, (_RAW, _WIRE[level])]
