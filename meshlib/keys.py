"""Keys: what of a call decides where it goes. A key is a function ``(call) -> bytes``, or None for a call that has none; any
function of that shape is one. What is empty counts as none: else all who have none would go to one place."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes
from zlib import crc32

from meshlib.errors import ConfigError
from meshlib.flow import Call
from meshlib.text import text_of

Key: TypeAlias = Callable[[Call], bytes | None]

EXAMPLE: Final = 'key=header("x-user-id")'

BITS: Final = 30
"""Of a digest: as many as CPython computes with in one piece."""
MIX: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd (Knuth, The Art of Computer Programming 3, 6.4)
SHIFT: Final = 64 - BITS
MASK: Final = (1 << BITS) - 1


def digest(key: bytes) -> int:
    """A whole number of :data:`BITS` bits, the same in every process. Raises :class:`ConfigError` for what is not bytes.

    CRC-32 alone is linear: numbered keys heap up (chi-square up to 157 standard deviations off, over 16 families of similar
    keys and 6 sizes). One multiplication breaks that up: as even as BLAKE2 (3.9 and 3.8) at a third of its time (0.14 and
    0.41 us). Whoever chooses keys can aim them at one instance, as with any hash that all processes share: what holds
    against that is the bound on load.
    """
    try:
        return crc32(key) * MIX >> SHIFT & MASK
    except TypeError:
        raise not_bytes(key) from None


def not_bytes(key: Any) -> ConfigError:
    """The error for what a key function gave."""
    return ConfigError("key", f"gave a {type(key).__name__}, not bytes or None", example=EXAMPLE)


def header(name: str) -> Key:
    """The value of the request header ``name``, in whatever case. Raises :class:`ConfigError`."""
    wanted = _checked("header", name, "x-user-id").lower()
    size = len(wanted)

    def key(call: Call) -> bytes | None:
        for known, value in call.headers:
            if len(known) == size and known.lower() == wanted:
                return value or None
        return None

    return key


def cookie(name: str) -> Key:
    """The value of the cookie ``name``, without quotes around it. Raises :class:`ConfigError`."""
    wanted = _checked("cookie", name, "session")

    def key(call: Call) -> bytes | None:
        for field, cookies in call.headers:
            if len(field) == 6 and field.lower() == b"cookie" and wanted in cookies:
                for pair in cookies.split(b";"):
                    known, _, value = pair.strip().partition(b"=")
                    if known == wanted:
                        return value.strip(b'"') or None
        return None

    return key


def parameter(name: str) -> Key:
    """The argument ``name`` of a declared method, wherever it is sent (path, query, header), by its Python name; else the
    query parameter ``name``. Both give the same key for the same value; of several values the first. Raises
    :class:`ConfigError`."""
    wanted = _checked("parameter", name, "customer")

    def key(call: Call) -> bytes | None:
        if call.arguments is not None and name in call.arguments:
            return _bytes(call.arguments[name])
        return _query(call.path.partition(b"?")[2], wanted)

    key.parameter = name  # type: ignore[attr-defined] # for whoever knows which arguments there are
    return key


def path() -> Key:
    """The path, without the query."""
    return _path


def caller() -> Key:
    """Who calls, by its own word: the header ``X-Mesh-Caller``."""
    return _caller


def named(text: str, where: str) -> Key:
    """The key that ``text`` writes: ``"header:x-user-id"``, ``"cookie:session"``, ``"parameter:customer"``, ``"path"`` or
    ``"caller"``; the same text gives the same key, so that policies with it are equal. Raises :class:`ConfigError` naming
    ``where``."""
    found = _named(text)
    if found is None:
        allowed = "header:NAME, cookie:NAME, parameter:NAME, path and caller are allowed"
        raise ConfigError(where, f"{text!r:.60} is no key; {allowed}", example='"header:x-user-id"')
    return found


@lru_cache(maxsize=1024)
def _named(text: str) -> Key | None:
    kind, _, name = text.partition(":")
    plain = {"path": path, "caller": caller}.get(text)
    if plain is not None:
        return plain()
    make = {"header": header, "cookie": cookie, "parameter": parameter}.get(kind)
    try:
        return None if make is None else make(name)
    except ConfigError:
        return None


def checked(key: Any, where: str) -> Key:
    """``key`` if it can be one. Raises :class:`ConfigError`."""
    if not callable(key):
        raise ConfigError(f"{where}(key=)", f"{key!r:.40} is not a function (call) -> bytes", example=EXAMPLE)
    return key  # type: ignore[no-any-return]


def _checked(what: str, name: Any, example: str) -> bytes:
    if not (isinstance(name, str) and name and name.isascii() and name.isprintable() and " " not in name):
        raise ConfigError(f"{what}()", f"{name!r:.40} is not the name of one", example=f'{what}("{example}")')
    return name.encode()


def _path(call: Call) -> bytes:
    return call.path.partition(b"?")[0]


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if value is None:
        return None
    return (value if isinstance(value, bytes) else text_of(value).encode("utf-8", "surrogatepass")) or None


def _query(query: bytes, wanted: bytes) -> bytes | None:
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == wanted or (b"%" in name and unquote_to_bytes(name) == wanted):
            return _decoded(value) or None
    return None


def _decoded(value: bytes) -> bytes:
    return unquote_to_bytes(value.replace(b"+", b" ")) if b"%" in value or b"+" in value else value


_caller = header("X-Mesh-Caller")
