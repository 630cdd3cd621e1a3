"""The management pages, whatever serves them: what is asked, who may ask, what is answered.

Who is on the list of networks (``MESH_MANAGEMENT_ALLOW``; everybody, where there is none) sees statuses: orchestrators,
load balancers and registries ask without credentials. With ``MESH_MANAGEMENT_TOKEN`` the other pages ask for it. Details
of components are shown only to who was let in by one of the two.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from meshlib._version import VERSION
from meshlib.errors import ConfigError
from meshlib.management.health import Check, Checks, Component, serving, worst
from meshlib.settings import Settings
from meshlib.worker import Worker

log = logging.getLogger(__name__)

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"  # RFC 9457
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ACTUATOR: Final = "application/vnd.spring-boot.actuator.v3+json"

REASONS: Final = {
    200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for a page. ``client`` is the address that it comes from, "" where the server does not say."""

    method: str
    path: str
    authorization: str = ""
    client: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered."""

    status: int
    body: bytes
    kind: str = JSON
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All of its header fields."""
        own = {"Content-Type": self.kind, "Content-Length": str(len(self.body)), "Cache-Control": "no-store"}
        return list({**own, **self.more}.items())

    @property
    def line(self) -> str:
        """The status as WSGI wants it."""
        return f"{self.status} {REASONS[self.status]}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the process stands with the mesh: ``hindrance`` says why it is not ready, or nothing; ``registration`` is how its
    entry is, None for a process that has none to make."""

    hindrance: str = ""
    registration: Component | None = None


class Measured(Protocol):
    """What a process has measured."""

    def prometheus(self) -> str:
        """As the text that Prometheus scrapes."""
        ...


_Page: TypeAlias = "Callable[[bool], Answer | Future[Answer]]"


class Pages:
    """``standing`` tells how the process stands now, ``metrics`` what it has measured; without it there is no such page."""

    def __init__(
        self,
        settings: Settings,
        worker: Worker,
        standing: Callable[[], Standing],
        metrics: Callable[[], Measured] | None = None,
    ) -> None:
        self._settings, self._worker, self._standing, self._metrics = settings, worker, standing, metrics
        self._allow = [ipaddress.ip_network(each) for each in settings.management_allow]
        self._secret = settings.management_secret
        self.checks = Checks()
        self.info: dict[str, Any] = {}
        self._open: dict[str, _Page] = {
            "/healthz": lambda _: _json(200, {"status": "UP"}),
            "/readyz": lambda details: self._ready(details, JSON),
            "/actuator/health": self._health,
            "/actuator/health/liveness": lambda _: _json(200, {"status": "UP"}, ACTUATOR),
            "/actuator/health/readiness": lambda details: self._ready(details, ACTUATOR),
        }
        self._closed: dict[str, _Page] = {"/actuator/info": lambda _: _json(200, self._about(), ACTUATOR)}
        if metrics is not None:
            self._closed["/metrics"] = lambda _: self._measured()
        prefix = settings.management_path
        self.paths = {prefix + path: path for path in (*self._open, *self._closed)} if settings.management == "on" else {}

    def answer(self, ask: Ask) -> Answer | Future[Answer]:
        """The answer, at once unless checks have to be made for it."""
        path = self.paths.get(ask.path, "")
        page = self._open.get(path) or self._closed.get(path)
        if page is None:
            return _problem(404, "there is no such page")
        if ask.method not in ("GET", "HEAD"):
            return _problem(405, "only GET and HEAD", {"Allow": "GET, HEAD"})
        if self._allow and not self._listed(ask.client):
            return _problem(403, "this address is not on the list")
        trusted = self._trusted(ask.authorization)
        if path in self._closed and trusted is False:
            return _problem(401, "the management token is wanted", {"WWW-Authenticate": 'Bearer realm="management"'})
        return page(bool(self._allow) if trusted is None else trusted)

    def _listed(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:  # a unix socket: who may connect there is said by the file's permissions, but not to us
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network for network in self._allow)

    def _trusted(self, authorization: str) -> bool | None:
        """Whether the token was shown; None when there is none. Raises nothing: a token that cannot be read is nobody's."""
        if self._secret is None:
            return None
        try:
            wanted = self._secret.reveal()
        except ConfigError:
            return False
        scheme, _, shown = authorization.partition(" ")
        same = hmac.compare_digest(shown.strip().encode(), wanted.encode())
        return bool(wanted) and scheme.lower() == "bearer" and same

    # -- pages

    def _ready(self, details: bool, kind: str) -> Answer | Future[Answer]:
        def shown(components: Mapping[str, Component]) -> Answer:
            return _report(components, details, kind)

        return self._with(self.checks.named(readiness=True), {"readinessState": self._readiness()}, shown)

    def _health(self, details: bool) -> Answer | Future[Answer]:
        own = {"livenessState": Component(), "readinessState": self._readiness()}
        if (registration := self._standing().registration) is not None:
            own["registration"] = registration

        def shown(components: Mapping[str, Component]) -> Answer:
            return _report(components, details, ACTUATOR, groups=["liveness", "readiness"])

        return self._with(self.checks.named(readiness=False), own, shown)

    def _readiness(self) -> Component:
        hindrance = self._standing().hindrance
        return Component("OUT_OF_SERVICE", hindrance) if hindrance else Component()

    def _with(
        self, checks: list[Check], own: Mapping[str, Component], shown: Callable[[Mapping[str, Component]], Answer]
    ) -> Answer | Future[Answer]:
        if not checks:
            return shown(own)

        async def asked() -> Answer:
            return shown({**own, **await self.checks.results(checks)})

        return self._worker.spawn(asked)

    def _about(self) -> dict[str, Any]:
        settings = self._settings
        app = {"name": settings.service, "version": settings.version, "namespace": settings.namespace, "zone": settings.zone}
        said = {name: _told(name, value) for name, value in self.info.items()}
        own = {"mesh": {"version": VERSION, "registry": settings.registry.scheme}}
        return {"app": {name: value for name, value in app.items() if value}, **own,
                "python": {"version": platform.python_version()}, **said}  # fmt: skip

    def _measured(self) -> Future[Answer]:
        """Not in the app's loop: the counts of other processes come from files."""

        def made() -> Answer:
            assert self._metrics is not None
            return Answer(200, self._metrics().prometheus().encode(), OPENMETRICS)

        return self._worker.spawn(lambda: asyncio.to_thread(made))


def _told(name: str, value: Any) -> Any:
    if not callable(value):
        return value
    try:
        return value()
    except Exception as problem:  # the app's own code: the rest of the page is there all the same
        log.exception("the info %s failed", name)
        return {"error": type(problem).__name__}


def _report(components: Mapping[str, Component], details: bool, kind: str, **more: Any) -> Answer:
    status = worst(components.values())
    shown = {name: component.shown(details=details) for name, component in components.items()}
    return _json(200 if serving(status) else 503, {"status": status, "components": shown, **more}, kind)


def _json(status: int, document: Any, kind: str = JSON) -> Answer:
    return Answer(status, msgspec.json.encode(document, enc_hook=str), kind)


def _problem(status: int, detail: str, more: Mapping[str, str] | None = None) -> Answer:
    document = {"type": "about:blank", "title": REASONS[status], "status": status, "detail": detail}
    return Answer(status, msgspec.json.encode(document), PROBLEM, more or {})
