"""From a call to the engine's request for an instance: URL, headers, TLS; nothing parsed twice."""

from __future__ import annotations

import ssl
from functools import cached_property
from typing import Any, Final

import httpx2

from meshlib.balance.endpoint import Endpoint
from meshlib.errors import ConfigError
from meshlib.flow import Call, RawHeaders
from meshlib.model import Instance
from meshlib.settings import Settings

IDLE: Final = 4.0
"""Seconds after which an idle connection is not used again: many servers close it after 5, and a call may meet that."""


class InstanceUrl(httpx2.URL):
    """The URL of a request's target at an instance, put together without parsing it again (which costs more than all the
    rest of a governed call). Transports read the parts; whoever needs more gets a full URL by ``httpx2.URL(str(url))``."""

    def __init__(self, origin: httpx2.URL, target: bytes) -> None:
        self.__dict__.update(origin.__dict__)
        self._target = target

    @property
    def raw_path(self) -> bytes:
        return self._target

    @property
    def path(self) -> str:
        return self._whole.path

    @property
    def query(self) -> bytes:
        return self._target.partition(b"?")[2]

    @property
    def params(self) -> httpx2.QueryParams:
        return self._whole.params

    @property
    def _whole(self) -> httpx2.URL:
        return httpx2.URL(str(self))

    def copy_with(self, **changes: Any) -> httpx2.URL:
        return self._whole.copy_with(**changes)

    def join(self, url: httpx2.URL | str) -> httpx2.URL:
        return self._whole.join(url)

    def __str__(self) -> str:
        return super().__str__().rstrip("/") + self._target.decode("ascii")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (str, httpx2.URL)) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class InstanceRequest(httpx2.Request):
    """A request put together from parts that need no further checking; its headers are parsed when somebody looks."""

    def __init__(self, call: Call, url: httpx2.URL, headers: RawHeaders, extensions: dict[str, Any]) -> None:
        self.method, self.url, self.stream, self.extensions = call.method, url, call.body, extensions
        self._raw_headers = headers

    @cached_property
    def headers(self) -> httpx2.Headers:  # type: ignore[override]
        return httpx2.Headers(self._raw_headers)


class Addressing:
    """What both engines need to turn a call into a request for an instance."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_name = settings.host_header == "service"
        self._origins: dict[Endpoint, tuple[httpx2.URL, bytes]] = {}

    def request(self, call: Call) -> httpx2.Request:
        endpoint = call.endpoint
        assert endpoint is not None
        origin, host = self._origins.get(endpoint) or self._origin(endpoint)
        headers, extensions = call.headers, call.extensions
        if self._by_name:
            host = call.target.service.encode()
            extensions = {"sni_hostname": call.target.service, **extensions}
        if not headers or len(headers[0][0]) != 4 or headers[0][0].lower() != b"host":
            headers = [(b"Host", host), *headers]
        return InstanceRequest(call, InstanceUrl(origin, call.path), headers, extensions)

    def _origin(self, endpoint: Endpoint) -> tuple[httpx2.URL, bytes]:
        instance = endpoint.instance
        url = httpx2.URL(scheme=instance.scheme, host=instance.host, port=instance.port)
        origin = (url, instance.netloc.encode("ascii"))
        self._origins[endpoint] = origin
        return origin

    def options(self, instance: Instance) -> dict[str, Any]:
        """Arguments of the engine's own transports. No proxy of the environment comes between instances."""
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=IDLE)
        verify = self._tls if instance.scheme == "https" else self._no_tls
        return {"verify": verify, "trust_env": False, "limits": limits}

    @cached_property
    def _no_tls(self) -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used; the engine would load the system's CAs (20 ms)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.tls_ca or None)
            if settings.tls_cert:
                context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as problem:
            raise ConfigError("MESH_TLS_CA, MESH_TLS_CERT or MESH_TLS_KEY", f"cannot be used: {problem}") from None
        return context

    def forget(self, endpoint: Endpoint) -> None:
        """``endpoint`` is gone."""
        self._origins.pop(endpoint, None)

    def forked(self) -> None:
        """In a child process: its endpoints are others."""
        self._origins = {}
