"""From an answer to the declared return type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import httpx2
import msgspec

from meshlib.client.types import is_model, is_optional, mentions_model
from meshlib.errors import ConfigError

Decode: TypeAlias = Callable[[httpx2.Response], Any]
FromBytes: TypeAlias = Callable[[bytes], Any]


def is_raw(hint: Any) -> bool:
    """True when the method wants the engine's response, of httpx2 or httpx, as it is."""
    return isinstance(hint, type) and hint.__name__ == "Response" and hint.__module__.partition(".")[0] in ("httpx", "httpx2")


def answer_of(hint: Any) -> Decode:
    """A function from a response whose body has been read to the same of the library of the type ``hint``."""
    if hint.__module__.partition(".")[0] == "httpx2":
        return lambda response: response

    return _of_httpx


def _of_httpx(response: httpx2.Response) -> Any:
    import httpx  # noqa: PLC0415 - whoever returns its responses has it

    asked = response.request
    request = httpx.Request(asked.method, str(asked.url), headers=asked.headers.raw)
    decoded = (b"content-encoding", b"content-length")  # of the body as it came; this one has been decoded
    headers = [pair for pair in response.headers.raw if pair[0].lower() not in decoded]
    answer = httpx.Response(response.status_code, headers=headers, content=response.content, request=request,
                            extensions=response.extensions)  # fmt: skip
    answer.elapsed = response.elapsed
    return answer


def accepts(hint: Any) -> bytes:
    """The ``Accept`` header for a return type."""
    return b"*/*" if hint in (bytes, str, None, type(None), Any) or is_raw(hint) else b"application/json"


def from_json(where: str, hint: Any) -> FromBytes:
    """A decoder of JSON bytes into ``hint``. Raises :class:`ConfigError` for a type that JSON cannot become."""
    if mentions_model(hint):
        from pydantic import TypeAdapter  # noqa: PLC0415 - whoever returns models has pydantic

        return TypeAdapter(hint).validate_json
    try:
        return msgspec.json.Decoder(hint, dec_hook=_foreign).decode
    except TypeError as problem:
        raise ConfigError(where, f"cannot decode an answer into {hint!r}: {problem}", example="-> Order") from problem


def _foreign(hint: Any, value: Any) -> Any:
    if is_model(hint):  # a model inside a dataclass or struct
        return hint.model_validate(value)
    raise TypeError(f"JSON cannot become a {hint!r}")


def decoder(where: str, hint: Any) -> Decode:
    """A function from a response whose body has been read to a value of type ``hint``. What it raises for a body that does
    not fit is a ValueError (msgspec's and pydantic's errors are)."""
    if hint is None or hint is type(None):
        return lambda _response: None
    if hint is bytes:
        return lambda response: response.content
    if hint is str:
        return _text
    parse = from_json(where, hint)
    if is_optional(hint):  # no content is None
        return lambda response: parse(response.content) if response.content.strip() else None
    return lambda response: parse(response.content)


def _text(response: httpx2.Response) -> str:
    if response.headers.get("content-type", "").partition(";")[0].strip().endswith("json"):
        value: str = msgspec.json.decode(response.content, type=str)
        return value
    return response.text
