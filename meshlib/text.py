"""How a plain value is written in a URL, a header or a key; and which name was meant."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable
from types import FunctionType
from typing import Any


def text_of(value: Any) -> str:
    """A plain value as it stands in a URL or header."""
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return text_of(value.value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def nearest(name: str, names: Iterable[str], *, alike: float = 0.5) -> str:
    """The one of ``names`` that ``name`` was probably meant to be, or nothing; at least ``alike`` (0 to 1) it must be."""
    import difflib  # noqa: PLC0415 - only for an error

    return next(iter(difflib.get_close_matches(name, sorted(names), 1, alike)), "")


def like(name: str, names: Iterable[str]) -> str:
    """A question for the end of a message: whether the nearest of ``names`` was meant; nothing if none is near."""
    near = nearest(name, names)
    return f"; did you mean {near!r}?" if near else ""


def shown(value: Any, most: int = 60) -> str:
    """``value`` in a message: what has a name by that, anything else as Python writes it, up to ``most`` characters."""
    if isinstance(value, (staticmethod, classmethod, property)):
        inside = getattr(value, "__func__", getattr(value, "fget", None))
        return f"the {type(value).__name__} {getattr(inside, '__qualname__', '')}".rstrip()
    if isinstance(value, FunctionType):
        return f"the function {value.__qualname__}"
    text = repr(value)
    return f"a {type(value).__qualname__}" if " at 0x" in text else text[:most]
