"""One instance of a service in the mesh for tests: its app, what is wrong with it, and what it was asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from meshlib.model import Instance
from meshlib.testing.apps import Hosted
from meshlib.testing.timeline import Timeline

ENDLESS: Final = "hangs, and the call has no time-out: it would never end"


@dataclass(frozen=True, slots=True)
class Received:
    """A request that reached an app: ``instance`` is its number; ``at`` the virtual time in seconds."""

    instance: int
    method: str
    path: str
    headers: httpx2.Headers
    body: bytes
    at: float

    def __repr__(self) -> str:
        return f"<{self.method} {self.path} at instance {self.instance}>"


@dataclass(slots=True)
class Faults:
    """What is wrong: ``dead`` refuses connections, ``hangs`` takes requests and says nothing, ``delay`` are seconds before each
    answer, ``status`` what a ``share`` (0 to 1) of the requests is answered with instead, ``every`` and ``since`` say that it
    is dead for so many seconds, then alive for as many, and so on. ``failed`` counts what was answered so."""

    dead: bool = False
    hangs: bool = False
    delay: float = 0.0
    status: int = 0
    share: float = 0.0
    owed: float = 0.0
    failed: int = 0
    every: float = 0.0
    since: float = 0.0

    def down(self, now: float) -> bool:
        """True when connections are refused now."""
        return self.dead or (self.every > 0 and int((now - self.since) / self.every) % 2 == 0)

    def fails(self) -> bool:
        """True when this request is one of those answered with :attr:`status`: spread evenly, so that no lot is drawn."""
        self.owed += self.share
        if self.owed < 1.0 - 1e-9:
            return False
        self.owed -= 1.0
        self.failed += 1
        return True


class Provider(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """An instance, as the transport that reaches it."""

    def __init__(self, number: int, instance: Instance, app: Hosted, timeline: Timeline) -> None:
        self.number, self.instance, self.faults = number, instance, Faults()
        self.received: list[Received] = []
        self._app, self._timeline = app, timeline

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """As its server would, for a blocking caller."""
        pause, problem = self._before(request)
        if pause:
            self._timeline.wait(pause)
        if (refused := self._after(request, problem)) is not None:
            return refused
        self._note(request, request.read())
        return self._app.answer(request)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The same for an async one."""
        pause, problem = self._before(request)
        if pause:
            await self._timeline.await_(pause)
        if (refused := self._after(request, problem)) is not None:
            return refused
        self._note(request, await request.aread())
        return await self._app.aanswer(request)

    def close(self) -> None:
        """Nothing is kept open."""

    async def aclose(self) -> None:
        """Nothing is kept open."""

    @property
    def down(self) -> bool:
        """True when connections are refused now."""
        return self.faults.down(self._timeline.clock())

    def _before(self, request: httpx2.Request) -> tuple[float, Exception | None]:
        """How many seconds pass before anything comes back, and what is raised then."""
        if self.down:
            raise httpx2.ConnectError("Connection refused", request=request)
        limit = (request.extensions.get("timeout") or {}).get("read")
        patience = math.inf if limit is None else limit
        delay = math.inf if self.faults.hangs else self.faults.delay
        if delay <= patience and delay < math.inf:
            return delay, None
        if patience == math.inf:
            raise AssertionError(f"{self.instance.id} {ENDLESS}")
        return patience, httpx2.ReadTimeout("The read operation timed out", request=request)

    def _after(self, request: httpx2.Request, problem: Exception | None) -> httpx2.Response | None:
        if problem is not None:
            raise problem
        if self.down:
            raise httpx2.ReadError("Connection reset by peer", request=request)
        if self.faults.share and self.faults.fails():
            return httpx2.Response(self.faults.status, stream=httpx2.ByteStream(b"injected by the test"))
        return None

    def _note(self, request: httpx2.Request, body: bytes) -> None:
        path = request.url.raw_path.decode("ascii")
        self.received.append(Received(self.number, request.method, path, request.headers, body, self._timeline.clock()))


async def reach(provider: Provider | None) -> bool:
    """What a probe finds: a stopped process still accepts connections."""
    return provider is not None and not provider.down


async def answers(provider: Provider | None) -> bool:
    """Whether the process behind the socket does anything."""
    return provider is not None and not provider.down and not provider.faults.hangs


def facts(service: str, number: int, namespace: str, **known: Any) -> Instance:
    """Instance ``number`` of a service, at an address that leads nowhere (RFC 5737)."""
    host = f"192.0.2.{number % 254 + 1}"
    return Instance.parse({"service": service, "id": f"{service}-{number}", "host": host, "port": 8000 + number // 254,
                           "namespace": namespace, **known})  # fmt: skip
