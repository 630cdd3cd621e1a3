"""Answers that no instance gave just now: kept from before, or made here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import httpx2
import msgspec

from meshlib.errors import ConfigError
from meshlib.flow import Call

AGE: Final = "meshlib.age"
"""Response extension: the seconds for which an answer was kept."""

_OF_THE_BODY_AS_IT_CAME: Final = (b"content-encoding", b"content-length", b"transfer-encoding")


class Again(httpx2.Response):
    """An answer that was kept. Its request is made when somebody asks for it, which costs more than all the rest; it is not
    the one that was sent, which has headers of whoever sent it."""

    def __init__(self, asked: tuple[str, str], status: int, **options: Any) -> None:
        super().__init__(status, **options)
        self._asked = asked

    @property
    def request(self) -> httpx2.Request:
        """As ``httpx2.Response.request``."""
        if self._request is None:
            self._request = httpx2.Request(*self._asked)
        return self._request

    @request.setter
    def request(self, value: httpx2.Request) -> None:
        self._request = value


class Kept:
    """An answer in memory, to be given again. ``size`` are the bytes that it takes, about."""

    __slots__ = ("_asked", "_before", "_body", "_extensions", "_headers", "_status", "size")

    def __init__(self, response: httpx2.Response, body: bytes, call: Call) -> None:
        self._status, self._body = response.status_code, body
        self._headers = [pair for pair in response.headers.raw if pair[0].lower() != b"age"]
        said = response.headers.get("age", "")
        # Of a remote's cache; one of ours has said so in the extension, too.
        self._before = max(0.0, float(said[:12]) - age_of(response)) if said.isascii() and said.isdigit() else 0.0
        self._extensions = {name: value for name, value in response.extensions.items() if name.startswith("meshlib.")}
        self._asked = (call.method, url_of(call))
        self.size = len(body) + sum(len(name) + len(value) for name, value in self._headers)

    def answer(self, age: float) -> httpx2.Response:
        """The answer anew, which was kept for ``age`` seconds: nobody changes what others get."""
        headers = [*self._headers, (b"Age", b"%d" % (self._before + age))]
        stream, extensions = httpx2.ByteStream(self._body), {**self._extensions, AGE: age}
        return Again(self._asked, self._status, headers=headers, stream=stream, extensions=extensions)


def kept(response: Any, call: Call, most: int) -> Kept | None:
    """``response`` to be given again; None when it has more than ``most`` bytes, or its body is not in memory (a stream)."""
    if not isinstance(response, httpx2.Response) or not isinstance(response.stream, httpx2.ByteStream):
        return None
    body = b"".join(response.stream)
    return Kept(response, body, call) if len(body) <= most else None


def age_of(response: Any) -> float:
    """The seconds for which ``response`` was kept, 0 for one that comes from an instance."""
    return float(getattr(response, "extensions", {}).get(AGE, 0.0))


def url_of(call: Call) -> str:
    """The URL of an answer that no instance gave."""
    return f"http://{call.target.service}{call.path.decode('ascii')}"


def made(call: Call, status: int, body: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()) -> httpx2.Response:
    """An answer to ``call``, made here."""
    request = httpx2.Request(call.method, url_of(call))  # as the engine's responses have one
    return httpx2.Response(status, headers=list(headers), content=body, request=request)


def answer_from(value: Any, call: Call) -> httpx2.Response:
    """``value`` as an answer to ``call``: a response of httpx2 or httpx as it is, bytes and text as the body, anything else as
    JSON. Raises :class:`ConfigError` for what is none of these."""
    if hasattr(value, "status_code") and hasattr(value, "headers"):
        return _copied(value, call)
    if isinstance(value, (bytes, bytearray)):
        return made(call, 200, bytes(value), [(b"Content-Type", b"application/octet-stream")])
    if isinstance(value, str):
        return made(call, 200, value.encode(), [(b"Content-Type", b"text/plain; charset=utf-8")])
    try:
        return made(call, 200, msgspec.json.encode(value), [(b"Content-Type", b"application/json")])
    except (TypeError, ValueError, OverflowError, RecursionError) as problem:
        raise _no_answer(f"a {type(value).__name__} is no answer: {problem}") from problem


def _copied(response: Any, call: Call) -> httpx2.Response:
    try:
        headers = [pair for pair in response.headers.raw if pair[0].lower() not in _OF_THE_BODY_AS_IT_CAME]
        return made(call, response.status_code, response.content, headers)
    except (AttributeError, RuntimeError) as problem:  # the engine's StreamError is a RuntimeError: its body was not read
        raise _no_answer(f"the body of the response is not in memory: {problem}") from problem


def _no_answer(problem: str) -> ConfigError:
    return ConfigError("fallback", problem, example='value=httpx2.Response(200, json=[]), value=b"…", or what JSON can be')
