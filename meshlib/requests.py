"""The requests of a mesh's own clients, put together with less work than the engine's: it merges, parses and normalizes for
every request what hardly ever changes, which costs more than all that governs the call."""

from __future__ import annotations

import re
from typing import Any, Final

import httpx2

_SEGMENT: Final = r"A-Za-z0-9._~!$&'()*+,;=:@\-"
_CLEAN: Final = re.compile(rf"(?:/(?!\.)[{_SEGMENT}]*)+(?:\?[{_SEGMENT}/?]*)?")
"""Paths, with their query, that are on the wire as they are written: nothing to quote, no segment to resolve."""

LONGEST: Final = 4096
"""Characters of a path that is not left to the engine."""

BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
"""Methods of requests that say nothing of a body that is not there."""

_UNSAID: Final[dict[str, Any]] = {
    **dict.fromkeys(("content", "data", "files", "json", "params", "headers", "cookies", "extensions")),
    "timeout": httpx2.USE_CLIENT_DEFAULT,
}
_NO_BODY: Final = httpx2.ByteStream(b"")


class Below(httpx2.URL):
    """The URL of a clean path below a client's base URL."""


class Plain(httpx2.Request):
    """A request without a body, made of parts that need no checking."""

    def __init__(self, method: str, url: httpx2.URL, headers: httpx2.Headers, extensions: dict[str, Any]) -> None:
        self.method, self.url, self.headers, self.extensions, self.stream = method, url, headers, extensions, _NO_BODY
        self.read()  # as the engine does with what is in memory: its content is there


class Requests:
    """Of one ``client``, what of its requests stays the same. Each part is looked at again when it is another one."""

    _base: httpx2.URL | None = None
    _raw: list[tuple[bytes, bytes]] | None = None

    def __init__(self, client: httpx2.Client | httpx2.AsyncClient) -> None:
        self._client = client

    def plain(self, method: str, url: Any, options: dict[str, Any]) -> httpx2.Request | None:
        """The request for a path below the client's base URL, if nothing but the path is asked for; None for the engine to
        make it."""
        client = self._client
        if options != _UNSAID or method not in BODILESS or type(url) is not Below or client.params or client.cookies:
            return None
        raw = client.headers.raw
        if raw != self._raw:
            self._take(raw)
        if self._headers is None:
            return None
        return Plain(method, url, httpx2.Headers(self._headers), {"timeout": client.timeout.as_dict()})

    def _take(self, raw: list[tuple[bytes, bytes]]) -> None:
        own = any(name.lower() == b"host" for name, _ in raw)
        self._headers = None if own else httpx2.Headers([(b"Host", self._client.base_url.netloc), *raw])
        self._raw = raw

    def join(self, url: Any) -> Any:
        """``url`` made absolute when it is a path: clean ones without parsing them, others as text, so that they are parsed
        once, where the engine parses, joins and parses again. What is no path is left to the engine to join."""
        if type(url) is not str or url[:1] != "/" or url[:2] == "//":
            return url
        base = self._client.base_url
        if base is not self._base:
            self._rebase(base)
        if len(url) > LONGEST or not _CLEAN.fullmatch(url):
            return url if "#" in url else self._prefix + url  # what is behind it is dropped only when the engine joins
        path, mark, query = url.partition("?")
        joined = Below.__new__(Below)
        joined._uri_reference = type(self._parts)(*self._origin, self._path + path, query if mark else None, None)
        return joined

    def _rebase(self, base: httpx2.URL) -> None:
        self._parts = base._uri_reference
        self._origin, self._path = self._parts[:4], self._parts.path.rstrip("/")
        self._base, self._prefix, self._raw = base, str(base).rstrip("/"), None
