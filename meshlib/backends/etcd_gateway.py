"""A client of etcd's v3 JSON gateway: typed answers, one error tree, a login that renews itself, leases and watches.

What the gateway does that its documentation does not stress, and that this module is built around (etcd 3.4):

- A lease that is gone answers a keepalive with 200 and no ``TTL``.
- A refused watch answers 200 with ``created`` *and* ``canceled``; a compacted one answers ``created`` first and
  ``canceled`` in the next line. So ``canceled`` is looked at first.
- The revision in a watch answer's header is the store's, which may be ahead of the events delivered so far.
- A ``start_revision`` that the member has not reached is waited for in silence.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import httpx2
import msgspec

from meshlib.backends.etcd_wire import (
    Anything,
    KeptAlive,
    Lease,
    Line,
    Login,
    Ranged,
    Trouble,
    Watched,
    Written,
    decode,
    failure,
    printable,
    range_end,
)
from meshlib.backends.http import ControlClient
from meshlib.errors import InvalidAnswer, RegistryDenied, RegistryError, RegistryUnavailable
from meshlib.security.secret import Secret

log = logging.getLogger(__name__)

MAX_LINE: Final = 16 * 1024 * 1024
"""Bytes of one line of a watch (etcd sends fragments of about 2 MB, a third more in base64)."""

_DEADLINE_EXCEEDED, _NOT_FOUND, _DENIED, _UNAVAILABLE, _UNAUTHENTICATED = 4, 5, 7, 14, 16  # codes of gRPC
_STALE = ("invalid auth token", "user name is empty", "auth store is old", "revision in header is old")
_REFUSED = ("permission denied", "authentication failed")
_OK = 200
_HOUR = 3600.0
_ENOUGH = 64 * 1024
_TOKEN = re.compile(r"[!-~]{1,4096}")

T = TypeVar("T")


class StaleToken(RegistryDenied):
    """The token is missing, expired or older than the users: logging in again may help."""


class Absent(RegistryUnavailable):
    """What the request names (a lease) is not there."""


class Compacted(RegistryUnavailable):
    """The revision that a watch asked for is no longer kept."""


class Gateway:
    """Calls etcd through ``client``, as ``user`` if one is given.

    Every method raises :class:`RegistryUnavailable`, :class:`RegistryDenied` or :class:`InvalidAnswer` and nothing else.
    """

    def __init__(self, client: ControlClient, *, user: str = "", password: Secret | None = None) -> None:
        self.client = client
        self._user, self._password = user, password or Secret()
        self._token: str | None = None if user else ""  # None: log in first; "": the server wants none
        self._logging_in = asyncio.Lock()

    async def range(self, key: bytes, end: bytes = b"", **options: Any) -> Ranged:
        """The keys from ``key`` to before ``end`` (none: just ``key``), ordered. ``options`` are those of etcd's
        RangeRequest: ``serializable``, ``keys_only``, ``limit``, ``sort_target``, ``sort_order``."""
        return await self.call("/v3/kv/range", {"key": key, "range_end": end, **options}, Ranged)

    async def prefix(self, prefix: bytes, **options: Any) -> Ranged:
        """All keys that start with ``prefix``; ``options`` as in :meth:`range`."""
        return await self.range(prefix, range_end(prefix), **options)

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> None:
        """Write ``value``, which goes away with ``lease`` if one is given."""
        await self.call("/v3/kv/put", {"key": key, "value": value, "lease": str(lease)}, Anything)

    async def delete(self, key: bytes) -> None:
        """Remove ``key``; fine when absent."""
        await self.call("/v3/kv/deleterange", {"key": key}, Anything)

    async def write_if(self, key: bytes, revision: int, write: Mapping[str, Any]) -> Written:
        """Perform ``write`` (an etcd RequestOp) if ``key`` was last modified at ``revision`` (0: if it is absent)."""
        compare = {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        return await self.call("/v3/kv/txn", {"compare": [compare], "success": [write]}, Written)

    async def grant(self, ttl: float) -> int:
        """A lease of ``ttl`` seconds, rounded up to whole ones (etcd 3.4 grants 2 at least); returns its id."""
        lease = await self.call("/v3/lease/grant", {"TTL": str(max(1, math.ceil(ttl)))}, Lease)
        if lease.ID == 0:
            raise InvalidAnswer("etcd granted a lease without an id")
        return lease.ID

    async def keepalive(self, lease: int) -> bool:
        """Prolong ``lease`` by its time; False when it is gone."""
        return (await self.call("/v3/lease/keepalive", {"ID": str(lease)}, KeptAlive)).result.TTL > 0

    async def revoke(self, lease: int) -> None:
        """End ``lease`` and remove what is attached to it; fine when it is gone."""
        with suppress(Absent):
            await self.call("/v3/lease/revoke", {"ID": str(lease)}, Anything)

    async def call(self, path: str, body: Mapping[str, Any], shape: type[T]) -> T:
        """POST ``body`` and decode the answer; with a token that is no longer valid, log in again and repeat once."""
        token = await self._login()
        try:
            return await self._post(path, body, shape, token)
        except StaleToken:
            if not self._discard(token):
                raise
        return await self._post(path, body, shape, await self._login())

    @asynccontextmanager
    async def watch(self, prefix: bytes, start: int) -> AsyncIterator[AsyncIterator[Watched]]:
        """The changes under ``prefix`` from revision ``start`` on, without end: reading them has no deadline of its own.
        Raises :class:`Compacted` when the server no longer has them, here or from the iterator."""
        create = {"key": prefix, "range_end": range_end(prefix), "start_revision": str(start), "fragment": True}
        async with AsyncExitStack() as stack:
            token = await self._login()
            try:
                answers = await self._open(stack, create, token)
            except StaleToken:
                await stack.aclose()
                if not self._discard(token):
                    raise
                answers = await self._open(stack, create, await self._login())
            yield answers

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def _post(self, path: str, body: Mapping[str, Any], shape: type[T], token: str) -> T:
        response = await self.client.request("POST", path, headers=_headers(token), content=msgspec.json.encode(body))
        if response.status_code != _OK:
            raise self._refusal(response, response.content)
        # The answer to a keepalive is a stream of one line and an empty one.
        return decode(response.content.strip(), shape)

    async def _open(self, stack: AsyncExitStack, create: Mapping[str, Any], token: str) -> AsyncIterator[Watched]:
        content = msgspec.json.encode({"create_request": create})
        try:
            async with asyncio.timeout(self.client.timeout):
                opening = self.client.stream("POST", "/v3/watch", headers=_headers(token), content=content, deadline=_HOUR)
                response = await stack.enter_async_context(opening)
                if response.status_code != _OK:
                    raise self._refusal(response, await _beginning(response))
                answers = await stack.enter_async_context(aclosing(self._answers(response)))
                created = await anext(answers)
        except TimeoutError:
            self.client.rotate()
            raise RegistryUnavailable(f"etcd opened no watch within {self.client.timeout} s") from None
        if created.header.revision < int(create["start_revision"]) - 1:
            self.client.rotate()
            raise RegistryUnavailable(f"{_host(response)} has not reached the revision to watch from")
        return answers

    async def _answers(self, response: httpx2.Response) -> AsyncGenerator[Watched, None]:
        host = _host(response)
        async with aclosing(_lines(response)) as lines:
            async for line in lines:
                yield self._checked(host, decode(line, Line))
        self.client.rotate()
        raise RegistryUnavailable(f"{host} ended the watch")

    def _checked(self, host: str, line: Line) -> Watched:
        if line.result is None:
            trouble = line.error or Trouble("a watch said neither result nor error")
            raise self._problem(host, trouble.grpc_code, trouble.message)
        if line.result.compact_revision:
            raise Compacted(f"{host} has compacted what is older than revision {line.result.compact_revision}")
        if line.result.canceled:
            raise self._problem(host, _UNAVAILABLE, line.result.cancel_reason or "watch canceled")
        return line.result

    async def _login(self) -> str:
        """The token to send, asked for once however many requests want it."""
        if self._token is not None:
            return self._token
        try:
            async with asyncio.timeout(self.client.timeout), self._logging_in:
                if self._token is None:
                    self._token = await self._authenticate()
                return self._token
        except TimeoutError:
            raise RegistryUnavailable(f"etcd gave no token within {self.client.timeout} s") from None

    async def _authenticate(self) -> str:
        body = {"name": self._user, "password": self._password.reveal()}
        try:
            token = (await self._post("/v3/auth/authenticate", body, Login, "")).token
        except RegistryUnavailable as problem:
            if "authentication is not enabled" not in str(problem):
                raise
            log.warning("etcd has authentication turned off: user %s is not used", self._user)
            return ""
        if not _TOKEN.fullmatch(token):
            raise InvalidAnswer("etcd answered a login with an unusable token")
        return token

    def _discard(self, token: str) -> bool:
        """Forget ``token`` unless a newer one is there already; False when there is no user to log in with."""
        if self._token == token and self._user:
            self._token = None
        return bool(self._user)

    def _refusal(self, response: httpx2.Response, content: bytes) -> RegistryError:
        code, message = failure(content)
        if not code and response.status_code in (401, 403):
            code = _DENIED
        if not code and response.status_code >= 500:
            code = _UNAVAILABLE
        return self._problem(_host(response), code, f"{message} (status {response.status_code})")

    def _problem(self, host: str, code: int, message: str) -> RegistryError:
        text = f"{host}: {printable(message)}"
        if code == _UNAUTHENTICATED or any(sign in message for sign in _STALE):
            return StaleToken(text)
        if code == _DENIED or any(sign in message for sign in _REFUSED):
            return RegistryDenied(text)
        if code == _NOT_FOUND:
            return Absent(text)
        if code in (_DEADLINE_EXCEEDED, _UNAVAILABLE):
            self.client.rotate()  # it has no leader, or lost it: another member may do better
        return RegistryUnavailable(text)


async def _beginning(response: httpx2.Response) -> bytes:
    """Enough of a failed answer to say what failed."""
    content = b""
    async with aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > _ENOUGH:
                break
    return content


async def _lines(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, each complete and at most :data:`MAX_LINE` long; empty ones are left out."""
    parts: list[bytes] = []
    size = 0
    async with aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            *complete, rest = chunk.split(b"\n")
            for part in complete:
                line = b"".join((*parts, part))
                parts, size = [], 0
                if line.strip():
                    yield line
            parts.append(rest)
            size += len(rest)
            if size > MAX_LINE:
                raise RegistryUnavailable(f"{_host(response)} sent a line of more than {MAX_LINE} bytes")


def _headers(token: str) -> dict[str, str]:
    return {"Content-Type": "application/json", **({"Authorization": token} if token else {})}


def _host(response: httpx2.Response) -> str:
    return f"{response.request.url.scheme}://{response.request.url.netloc.decode('ascii', 'replace')}"
