"""py-consul, awaited, over the control plane's own HTTP client: our token, our deadlines, our errors.

py-consul's own transport breaks over a fork and lets foreign exceptions out. It is made to have its transport replaced:
every method of its API hands a callback to ``http.get`` and the like, and returns what they return; here coroutines.
"""

# py-consul has no types of its own; what a checker infers of its methods is narrower than what they are made for.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx2
import msgspec
from consul import base
from consul.exceptions import ConsulException, NotFound

from meshlib.backends.http import ControlClient
from meshlib.errors import CasConflict, ConfigError, InvalidAnswer, RegistryDenied, RegistryUnavailable
from meshlib.security.secret import Secret

Params = list[tuple[str, Any]]
Respond = Callable[[Any], Any]
T = TypeVar("T")

MARGIN = 2.0
"""Seconds that a blocking query may take beyond the time it was told to wait (and Consul's jitter of a sixteenth)."""

PACE = 0.05
"""Seconds between two questions of a watch in the long run, however fast the index moves."""

BURST = 10
"""Further questions that may follow at once after a time of silence: a registration, for one, is two changes (its check
begins critical, and passes a moment later), and whoever waits before looking at the second learns of the instance late."""

# What agents say with status 500 about a check or service they do not know; later releases say it with 404.
_UNKNOWN = (b"does not have associated TTL", b"Unknown check", b"Unknown service")

# What the callbacks, py-consul's or ours, raise for an answer that is not what they expect.
_UNREADABLE = (
    ConsulException, msgspec.MsgspecError, ValueError, TypeError, LookupError, AttributeError, RecursionError,
)  # fmt: skip


class Hook(base.HTTPClient):  # type: ignore[misc]  # py-consul has no types
    """What py-consul takes for its HTTP client."""

    def __init__(self, client: ControlClient, token: Secret | None) -> None:
        self.base_uri = ""  # for uri(), which quotes: the host is the client's affair
        self._client = client
        self._token = token or Secret(os.environ.get("CONSUL_HTTP_TOKEN", ""))

    async def get(self, callback: Respond, path: str, params: Params | None = None, **_: Any) -> Any:
        return await self._send("GET", callback, path, params)

    async def put(
        self, callback: Respond, path: str, params: Params | None = None, data: str | bytes | None = None, *,
        agent: str = "", **_: Any,
    ) -> Any:  # fmt: skip
        """``agent``: that one of the client's bases, and no other."""
        return await self._send("PUT", callback, path, params, data, agent=agent)

    async def delete(
        self, callback: Respond, path: str, params: Params | None = None, data: str | bytes | None = None, **_: Any
    ) -> Any:
        return await self._send("DELETE", callback, path, params, data)

    async def post(
        self, callback: Respond, path: str, params: Params | None = None, data: str | bytes | None = None, **_: Any
    ) -> Any:
        return await self._send("POST", callback, path, params, data)

    @property
    def agent(self) -> str:
        """The one that is asked next."""
        return self._client.base

    @property
    def agents(self) -> list[str]:
        """All of them."""
        return self._client.bases

    async def close(self) -> None:
        await self._client.aclose()

    async def _send(
        self,
        method: str,
        callback: Respond,
        path: str,
        params: Params | None,
        data: str | bytes | None = None,
        *,
        agent: str = "",
    ) -> Any:
        wait = float(dict(params or ()).get("wait", "0s").removesuffix("s"))
        response = await self._client.request(
            method,
            self.uri(path, params),
            headers=self._headers(),
            content=data or None,
            deadline=wait + wait / 16 + MARGIN if wait else None,
            watch=bool(wait),
            only=agent,
        )
        status = self._accepted(response)
        try:
            return callback(base.Response(status, response.headers, response.content))
        except NotFound:
            return None
        except _UNREADABLE as problem:
            raise InvalidAnswer(f"{method} {path}: {str(problem)[:200]}") from problem

    def _headers(self) -> Mapping[str, str]:
        # Revealed for every request: a token that is renewed on disk is picked up. Not py-consul's headers: its agent
        # methods forget the token, and it prefers the environment's.
        try:
            token = self._token.reveal()
        except ConfigError as problem:
            raise RegistryDenied(str(problem)) from problem
        if not (token.isascii() and token.isprintable()):
            raise RegistryDenied("the token holds characters that no header can carry")
        return {"X-Consul-Token": token} if token else {}

    def _accepted(self, response: httpx2.Response) -> int:
        """The status, when it is one that callbacks understand."""
        status, request = response.status_code, response.request
        if status >= 500 and any(text in response.content for text in _UNKNOWN):
            return 404
        if status >= 500 or response.headers.get("X-Consul-KnownLeader") == "false":
            self._client.rotate(str(request.url))
        if status in (200, 404):
            return status
        said = f"{request.method} {request.url}: {status} {response.text[:200]!r}"
        if status in (401, 403):
            raise RegistryDenied(said)
        if status == 409:
            raise CasConflict(said)
        if status >= 500 or status == 429:
            raise RegistryUnavailable(said)
        raise InvalidAnswer(said)


class Api(base.Consul):  # type: ignore[misc]
    """py-consul's API with every method awaitable. Raises :class:`~meshlib.errors.RegistryError` and nothing else."""

    http: Hook

    def __init__(self, client: ControlClient, *, token: Secret | None = None, dc: str = "") -> None:
        self._hook = Hook(client, token)
        # Named in full, or py-consul looks for them in the environment.
        super().__init__("ignored", 1, scheme="http", verify=True, dc=dc or None)

    def http_connect(self, *_: Any, **__: Any) -> Hook:
        return self._hook

    @property
    def where(self) -> Params:
        """The datacentre as parameters, for requests that py-consul has no method for."""
        return [("dc", self.dc)] if self.dc else []


def whole(header: str | None) -> int:
    """The number in a header of Consul's, 0 when there is none to be read."""
    return int(header) if header and header.isascii() and header.isdigit() and len(header) <= 20 else 0


def next_index(last: int, answered: int) -> int:
    """The index to wait for after ``answered``. It went backwards: the servers lost their state, so start again at 0,
    which does not wait. Less than 1 would not wait either, and make a busy loop."""
    return 0 if answered < last else max(answered, 1)


async def follow(
    ask: Callable[[int], Awaitable[tuple[int, T]]],
    *,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[tuple[int, T], None]:
    """Ask, with the index to wait for, again and again, and yield the answers that changed; unchanged ones at most once a
    second, as proof of life, because the index moves with things that are none of ours. ``clock`` is the loop's unless
    given."""
    clock = clock or asyncio.get_running_loop().time
    index, last, yielded, due = 0, None, 0.0, 0.0
    while True:
        due = max(due, clock() - BURST * PACE) + PACE
        answered, state = await ask(index)
        index = next_index(index, answered)
        if state != last or clock() - yielded >= 1:
            last, yielded = state, clock()
            yield answered, state
        await sleep(max(0.0, due - clock()))
