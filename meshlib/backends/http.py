"""One HTTP client for the control plane, shared by Consul and etcd: failover between hosts, deadlines, TLS, one error tree.

Ordinary requests and watches have separate connection pools, so that long polls never starve a heartbeat.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2

from meshlib.errors import ConfigError, RegistryUnavailable
from meshlib.settings import Settings

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of one answer that are read (threat 15)."""


KEEPALIVE = [
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 2),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 5000),  # ms; no probes are sent while our own bytes are not acknowledged
    )
    if hasattr(socket, name)
]
"""A watch is silent most of the time: with these its connection is given up after 5 s without a sign of the other machine.
Otherwise it waits for the retransmissions of the other side, whose pauses grow with the outage, or for its own deadline."""


class ControlClient:
    """Talks to whichever of ``hosts`` answers.

    A request tries every host once as long as connecting fails; any other failure moves on to the next host for the next
    request and raises :class:`RegistryUnavailable`. Everything sent through it must therefore be safe to repeat.
    """

    def __init__(
        self,
        hosts: tuple[tuple[str, int], ...],
        *,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        scheme = "https" if tls else "http"
        self.bases = [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in hosts]
        self.current = 0
        self.timeout = timeout
        self._tls, self._transport = tls, transport
        self._calls: httpx2.AsyncClient | None = None
        self._watches: httpx2.AsyncClient | None = None
        self._closed = False

    def _client(self) -> httpx2.AsyncClient:
        # trust_env off: the registry is never reached through a proxy that happens to be in the environment.
        transport = self._transport or httpx2.AsyncHTTPTransport(
            verify=self._tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=30),
            socket_options=KEEPALIVE,
        )
        return httpx2.AsyncClient(transport=transport, trust_env=False)

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | str | None = None,
        deadline: float | None = None,
        watch: bool = False,
        only: str = "",
    ) -> httpx2.Response:
        """Send and read the whole answer, whatever its status, within ``deadline`` seconds (default: the client's
        timeout). ``path`` holds the query too; ``watch`` takes a connection of the watches' pool, for long polls; ``only``
        asks that one of the ``bases`` and no other."""
        deadline = deadline or self.timeout
        where = only or self.base
        try:
            # The client's own timeouts are per read: a server that trickles would be listened to for ever.
            async with (
                asyncio.timeout(deadline),
                self._open(method, path, headers, content, deadline, watch=watch, encoding="gzip", only=only) as response,
            ):
                return await _read(response)
        except TimeoutError:
            self.rotate(where)
            raise RegistryUnavailable(f"{where}: no whole answer within {deadline} s") from None

    def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | str | None = None,
        deadline: float,
    ) -> AbstractAsyncContextManager[httpx2.Response]:
        """Open a watch: the head of the answer and every read after it has ``deadline`` seconds. It is never compressed."""
        return self._open(method, path, headers, content, deadline, watch=True, encoding="identity")

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, headers: Any, content: Any, deadline: float, *, watch: bool, encoding: str, only: str = ""
    ) -> AsyncIterator[httpx2.Response]:
        if self._closed:
            raise RegistryUnavailable("this client is closed")
        if watch:
            client = self._watches = self._watches or self._client()
        else:
            client = self._calls = self._calls or self._client()
        headers = {**(headers or {}), "Accept-Encoding": encoding}
        timeout = httpx2.Timeout(deadline, connect=min(1.0, deadline))
        where = only or self.base
        try:
            for left in reversed(range(len(self.bases))):
                where = only or self.base
                request = client.build_request(method, where + path, headers=headers, content=content, timeout=timeout)
                try:
                    response = await client.send(request, stream=True)
                    break
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    if only or not left:
                        raise
                    self.rotate(where)
            else:
                raise AssertionError("there is always a host")
            try:
                if _encoding(response) not in ("identity", encoding):
                    raise RegistryUnavailable(f"{where} answered in the encoding {_encoding(response)[:20]!r}, not asked for")
                yield response
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as problem:
            self.rotate(where)
            raise RegistryUnavailable(f"{where}: {_detail(problem, where)}") from problem

    @property
    def base(self) -> str:
        """The host that is asked next, as a URL."""
        return self.bases[self.current]

    def rotate(self, failed: str = "") -> None:
        """Use the next host from now on (a server that answers "no leader" is as bad as a dead one). With the URL that
        ``failed`` only if its host is still the current one: many calls that fail together move on by one."""
        # Parsed, because a URL drops the port that its scheme implies.
        if not failed or httpx2.URL(failed).netloc == httpx2.URL(self.base).netloc:
            self.current = (self.current + 1) % len(self.bases)

    async def aclose(self) -> None:
        """Close both pools. A watch that is still open ends by its deadline."""
        self._closed = True
        for client in (self._calls, self._watches):
            if client is not None:
                await client.aclose()


def _detail(problem: BaseException, where: str) -> str:
    """What went wrong, from whichever error below ``problem`` says it."""
    told: BaseException | None = problem
    while told is not None and not str(told):
        told = told.__cause__ or told.__context__
    # TLS 1.3 servers refuse a client after the handshake; by then we are writing, and their alert is lost.
    hint = " (does it want a client certificate?)" if where.startswith("https") and isinstance(told, BrokenPipeError) else ""
    return f"{type(problem).__name__}: {told}{hint}" if told else type(problem).__name__


async def _read(response: httpx2.Response) -> httpx2.Response:
    chunks, size, unpack = [], 0, _unpacker(response)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    async for chunk in response.stream:
        chunks.append(unpack(chunk, MAX_ANSWER + 1 - size))
        size += len(chunks[-1])
        if size > MAX_ANSWER:
            raise RegistryUnavailable(f"{response.request.url.host} sent more than {MAX_ANSWER} bytes")
    return httpx2.Response(response.status_code, headers=_plain(response), content=b"".join(chunks), request=response.request)


def _encoding(response: httpx2.Response) -> str:
    return str(response.headers.get("Content-Encoding", "identity")).strip().lower()


def _unpacker(response: httpx2.Response) -> Callable[[bytes, int], bytes]:
    """Makes of a chunk at most that many bytes. Not the HTTP library's decoders: they unpack a chunk whole, however much
    comes of it."""
    if _encoding(response) == "identity":
        return lambda chunk, _: chunk
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def unpack(chunk: bytes, room: int) -> bytes:
        try:
            return inflater.decompress(chunk, room)
        except zlib.error as problem:
            raise RegistryUnavailable(f"{response.request.url.host} sent damaged gzip: {problem}") from problem

    return unpack


def _plain(response: httpx2.Response) -> list[tuple[bytes, bytes]]:
    # The body has been unpacked already, so what describes its encoding must go. As bytes: nobody promises ASCII.
    gone = {b"content-encoding", b"content-length", b"transfer-encoding"}
    return [(key, value) for key, value in response.headers.raw if key.lower() not in gone]


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context for the registry, or None for plain HTTP. Raises :class:`ConfigError` for unusable files."""
    if not (settings.registry_ca or settings.registry_cert or settings.registry.options.get("tls") == "true"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.registry_ca or None)
    except (OSError, ssl.SSLError) as problem:
        raise _unusable(settings, "registry_ca", problem) from None
    if settings.registry_cert:
        try:
            context.load_cert_chain(settings.registry_cert, settings.registry_key)
        except (OSError, ssl.SSLError) as problem:
            raise _unusable(settings, "registry_cert", problem) from None
    return context


def _unusable(settings: Settings, name: str, problem: Exception) -> ConfigError:
    source = settings.sources.get(name, "code")
    return ConfigError(
        f"MESH_{name.upper()}", f"cannot use {getattr(settings, name)}: {problem}", source=source, example="/etc/file.pem"
    )
