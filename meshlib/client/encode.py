"""From arguments to a request: path, query, headers, body."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx2
import msgspec

from meshlib.client.declare import Body, Header, Method, Parameter, Query, header_name, header_value
from meshlib.client.types import is_byte_stream, is_model
from meshlib.errors import ConfigError
from meshlib.flow import RawHeaders
from meshlib.text import nearest, text_of


class Chunks(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A streamed body. Blocking iterables serve both shells; asynchronous ones only the asyncio shell."""

    def __init__(self, source: Any) -> None:
        self._source = source  # taken up only when it is sent: an attempt that failed before leaves it whole

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._source)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._source, AsyncIterable):
            async for chunk in self._source:
                yield chunk
        else:
            for chunk in self._source:
                yield chunk
                await asyncio.sleep(0)  # a long blocking source must not starve the loop


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_foreign)


def _foreign(value: Any) -> Any:
    if is_model(type(value)):
        return msgspec.Raw(value.model_dump_json().encode())
    raise TypeError(f"a {type(value).__qualname__} has no JSON form")


Encoded: TypeAlias = tuple[bytes, RawHeaders, Any, bool, dict[str, Any]]
"""Raw request target, headers, byte stream, whether the stream can be sent twice, and the arguments by name."""


class Encoder:
    """Turns the arguments of one declared method into the parts of a call."""

    def __init__(self, method: Method, fixed: tuple[tuple[bytes, bytes], ...], accept: bytes) -> None:
        self._method = method
        kinds = {name: one.kind for name, one in method.signature.parameters.items()}
        self._positional = tuple(name for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY)
        self._keywords = {name for name, kind in kinds.items() if kind is not inspect.Parameter.POSITIONAL_ONLY}
        empty = inspect.Parameter.empty
        self._defaults = {one.name: one.default for one in method.parameters if one.default is not empty}
        self._query = [one for one in method.parameters if isinstance(one.place, Query)]
        self._headers = [(one, header_name(one.wire)) for one in method.parameters if isinstance(one.place, Header)]
        self._body = next((one for one in method.parameters if isinstance(one.place, Body)), None)
        said = {name.lower() for name, _ in fixed} | {name.lower() for _, name in self._headers}
        self._fixed: RawHeaders = [*fixed] if b"accept" in said else [(b"Accept", accept), *fixed]
        self._own_type, self._own_host = b"content-type" in said, b"host" in said

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoded:
        """Raises TypeError for arguments that do not fit the signature, :class:`ConfigError` for unusable values."""
        values = self._bind(args, kwargs)
        target = self._path(values)
        if self._query:
            target += self._query_string(values)
        headers = [*self._fixed]
        for parameter, name in self._headers:
            headers += [(name, header_value(parameter.wire, text)) for text in _texts(values[parameter.name])]
        if self._own_host:
            headers.sort(key=lambda pair: pair[0].lower() != b"host")  # see Call: it comes first
        stream, replayable = self._stream(values, headers)
        return target.encode("ascii"), headers, stream, replayable, values

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        values = {**self._defaults, **dict(zip(self._positional, args, strict=False)), **kwargs}
        fits = len(values) == len(self._method.parameters) and len(args) <= len(self._positional)
        if kwargs and fits:
            fits = kwargs.keys() <= self._keywords and kwargs.keys().isdisjoint(self._positional[: len(args)])
        if not fits:
            try:
                self._method.signature.bind(*args, **kwargs)
            except TypeError as problem:
                raise TypeError(f"{self._method.name}(): {problem}{self._hint(kwargs)}") from None
        return values

    def _hint(self, kwargs: dict[str, Any]) -> str:
        unknown = next((name for name in kwargs if name not in self._keywords), None)
        near = "" if unknown is None else nearest(unknown, self._keywords)
        return f"; did you mean {near!r}, not {unknown!r}?" if near else ""

    def _path(self, values: dict[str, Any]) -> str:
        return "".join([part if isinstance(part, str) else self._segment(*part, values) for part in self._method.template])

    def _segment(self, name: str, keep_slashes: bool, values: dict[str, Any]) -> str:
        text = text_of(values[name])
        # An empty or dot segment would silently name another resource.
        if not text or values[name] is None or not {".", ".."}.isdisjoint(text.split("/") if keep_slashes else (text,)):
            raise ConfigError(f"{self._method.name}({name}=…)", f"{text!r} cannot stand in a path", example="a plain value")
        return _quoted(text, "/" if keep_slashes else "")

    def _query_string(self, values: dict[str, Any]) -> str:
        pairs = []
        for parameter in self._query:
            pairs += [f"{_quoted(parameter.wire)}={_quoted(text)}" for text in _texts(values[parameter.name])]
        if not pairs:
            return ""
        return ("&" if "?" in self._method.path else "?") + "&".join(pairs)

    def _stream(self, values: dict[str, Any], headers: RawHeaders) -> tuple[Any, bool]:
        value = None if self._body is None else values[self._body.name]
        if value is None:
            if self._method.verb in ("POST", "PUT", "PATCH"):
                headers.append((b"Content-Length", b"0"))
            return _NO_BODY, True
        if _streams(self._body, value):
            self._say_type(headers, b"application/octet-stream")
            headers.append((b"Transfer-Encoding", b"chunked"))
            if not self._method.awaits and not isinstance(value, Iterable):
                raise TypeError(f"{self._method.name}() is blocking, so its body cannot be an asynchronous iterable")
            return Chunks(value), False
        kind, encode = _encoding(value)
        content = encode(value)
        self._say_type(headers, kind)
        headers.append((b"Content-Length", b"%d" % len(content)))
        return httpx2.ByteStream(content), True

    def _say_type(self, headers: RawHeaders, kind: bytes) -> None:
        if not self._own_type or not any(name.lower() == b"content-type" for name, _ in headers):
            headers.append((b"Content-Type", kind))


def _texts(value: Any) -> list[str]:
    many = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    return [text_of(one) for one in many if one is not None]


def _quoted(text: str, safe: str = "") -> str:
    try:
        return quote(text, safe=safe)
    except UnicodeEncodeError:
        raise ConfigError("argument", f"{text[:40]!a} is not text that has a UTF-8 form", example="'café'") from None


def _encoding(value: Any) -> tuple[bytes, Callable[[Any], bytes]]:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"application/octet-stream", bytes
    if isinstance(value, str):
        return b"text/plain; charset=utf-8", str.encode
    return b"application/json", _json


def _streams(parameter: Parameter | None, value: Any) -> bool:
    declared = parameter is not None and is_byte_stream(parameter.hint) and isinstance(value, (Iterable, AsyncIterable))
    return declared and not isinstance(value, (bytes, bytearray, memoryview, str))


_NO_BODY = httpx2.ByteStream(b"")
