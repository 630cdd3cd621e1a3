"""The messages of etcd's v3 JSON gateway, as far as meshlib uses them, and how they are told from anything else.

64-bit numbers are strings and byte strings are base64 there; fields with their default value are left out.
"""

from __future__ import annotations

from typing import Final, Literal, TypeVar

import msgspec

from meshlib.errors import InvalidAnswer

EXCERPT: Final = 200
"""Characters of a server's text that a message of ours shows."""

T = TypeVar("T")


class Header(msgspec.Struct):
    """Heads every answer; ``revision`` is the store's at that moment."""

    revision: int = 0


class Pair(msgspec.Struct):
    """A key and what is under it."""

    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class Ranged(msgspec.Struct):
    """A range of keys; ``count`` is how many there are, also when ``kvs`` is filtered."""

    header: Header
    kvs: list[Pair] = []
    count: int = 0


class Written(msgspec.Struct):
    """A transaction; ``succeeded`` when its comparisons held."""

    header: Header
    succeeded: bool = False


class Event(msgspec.Struct):
    """A change of one key; a deletion carries the key and its revision only."""

    kv: Pair
    type: Literal["PUT", "DELETE"] = "PUT"


class Watched(msgspec.Struct):
    """One answer of a watch."""

    header: Header
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: list[Event] = []


class Anything(msgspec.Struct):
    pass


class Lease(msgspec.Struct):
    ID: int = 0
    TTL: int = 0


class KeptAlive(msgspec.Struct):
    result: Lease


class Login(msgspec.Struct):
    token: str


class Trouble(msgspec.Struct):
    message: str = ""
    grpc_code: int = 0


class Line(msgspec.Struct):
    result: Watched | None = None
    error: Trouble | None = None


class Failure(msgspec.Struct):
    error: str | Trouble = ""
    code: int = 0


def range_end(prefix: bytes) -> bytes:
    """The first key behind all that start with ``prefix``; ``b"\\0"``, which etcd reads as "no end", where none is."""
    bare = prefix.rstrip(b"\xff")
    return bare[:-1] + bytes([bare[-1] + 1]) if bare else b"\0"


def decode(content: bytes, shape: type[T]) -> T:
    """``content`` as a ``shape``; raises :class:`InvalidAnswer`."""
    try:
        return msgspec.json.decode(content, type=shape, strict=False)  # lax: numbers come as strings
    except (msgspec.MsgspecError, RecursionError, ValueError) as problem:
        raise InvalidAnswer(f"etcd answered what is no {shape.__name__}: {printable(str(problem))}") from None


def failure(content: bytes) -> tuple[int, str]:
    """gRPC code (0: unknown) and message of an answer that is no success."""
    try:
        told = decode(content, Failure)
    except InvalidAnswer:
        return 0, content[:EXCERPT].decode("utf-8", "replace")
    if isinstance(told.error, Trouble):
        return told.error.grpc_code, told.error.message
    return told.code, told.error


def printable(text: str) -> str:
    """The beginning of ``text`` with everything escaped that would break a line of a log."""
    return text[:EXCERPT].encode("unicode_escape").decode("ascii")
