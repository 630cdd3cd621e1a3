"""Questions about type hints: what is a body, what is a stream, what needs which decoder."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sys
import types
import typing
import uuid
from collections import abc
from typing import Any

PLAIN = (str, int, float, bool, enum.Enum, uuid.UUID, datetime.date, datetime.time, decimal.Decimal)
"""Values that fit into a path, a query or a header (a datetime is a date)."""

_SYNC_STREAMS = (abc.Iterator, abc.Iterable, abc.Generator)
_ASYNC_STREAMS = (abc.AsyncIterator, abc.AsyncIterable, abc.AsyncGenerator)


def unpack(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type hint and what Annotated says of it, wherever in ``Annotated[X | None, …]`` or ``Annotated[X, …] | None``."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *notes = typing.get_args(hint)
        return inner, tuple(notes)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [unpack(one) for one in typing.get_args(hint)]
        return typing.Union[tuple(part for part, _ in parts)], tuple(note for _, notes in parts for note in notes)  # noqa: UP007
    return hint, ()


def is_optional(hint: Any) -> bool:
    """True for ``X | None``."""
    return type(None) in typing.get_args(unpack(hint)[0])


def bare(hint: Any) -> Any:
    """``hint`` without Annotated and without ``| None``."""
    if typing.get_origin(hint) is typing.Annotated:
        return bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        left = [one for one in typing.get_args(hint) if one is not type(None)]
        if len(left) == 1:
            return bare(left[0])
    return hint


def stream_item(hint: Any) -> Any | None:
    """``T`` when ``hint`` is ``Iterator[T]``, ``AsyncIterator[T]`` and the like, else None."""
    hint = bare(hint)
    if typing.get_origin(hint) in (*_SYNC_STREAMS, *_ASYNC_STREAMS):
        return typing.get_args(hint)[0]
    return Any if hint in (*_SYNC_STREAMS, *_ASYNC_STREAMS) else None


def is_async_stream(hint: Any) -> bool:
    """True for ``AsyncIterator[T]`` and the like."""
    hint = bare(hint)
    return hint in _ASYNC_STREAMS or typing.get_origin(hint) in _ASYNC_STREAMS


def is_byte_stream(hint: Any) -> bool:
    """True for an iterable of bytes, blocking or not: a body to stream."""
    return stream_item(hint) is bytes


def is_body(hint: Any) -> bool:
    """True when a parameter of this type can only be a body."""
    hint = bare(hint)
    if is_byte_stream(hint) or hint in (bytes, bytearray, memoryview, dict) or hint is Any:
        return True
    origin = typing.get_origin(hint)
    if origin is not None and isinstance(origin, type) and issubclass(origin, abc.Mapping):
        return True
    if origin is not None and isinstance(origin, type) and issubclass(origin, abc.Collection):
        return any(is_body(item) for item in typing.get_args(hint) if item is not ...)
    return isinstance(hint, type) and not issubclass(hint, PLAIN) and (
        dataclasses.is_dataclass(hint) or typing.is_typeddict(hint) or hasattr(hint, "__struct_fields__") or is_model(hint)
    )  # fmt: skip


def is_model(hint: Any) -> bool:
    """True for a pydantic model class. Pydantic is looked at only when somebody has imported it."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(hint, type) and issubclass(hint, pydantic.BaseModel)


def mentions_model(hint: Any) -> bool:
    """True when ``hint`` holds a pydantic model anywhere in its arguments."""
    return is_model(hint) or any(mentions_model(one) for one in typing.get_args(hint))


def fits(hint: Any, value: Any) -> bool:
    """Whether ``value`` can be a ``hint``, as far as is seen from outside: its items are not looked at."""
    hint = unpack(hint)[0]
    if hint is None:
        return value is None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(one, value) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if stream_item(hint) is not None:
        return isinstance(value, (abc.Iterable, abc.AsyncIterable)) and not isinstance(value, (str, bytes, abc.Mapping))
    kind = origin or hint
    if typing.is_typeddict(kind):
        return isinstance(value, dict)
    try:
        return isinstance(value, (int, float) if kind is float else kind)
    except TypeError:  # nothing that can be asked of an object: a type variable, Any
        return True
