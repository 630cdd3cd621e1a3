"""``static://``: instances that are written down, for tests, development and services that never move.

``static://orders=10.0.0.5:8080,10.0.0.6:8080;users=https://10.0.0.7:8443`` has them in the URL.
``static:///path/file.json`` has them in a file, read again when it changes::

    {"orders": ["10.0.0.5:8080", {"host": "10.0.0.6", "port": 8080, "zone": "eu-1a"}], "users": ["https://10.0.0.7:8443"]}

A name may have its namespace (``shop.prod.orders``), else it is in that of the settings. An address has a scheme (``http``
by default) and a port; an instance without an ``id`` is called by its ``host:port``. Registering is accepted and does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from meshlib.backends.base import CONFIRM, Backend, Listing
from meshlib.errors import ConfigError, InvalidAnswer, RegistryError, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings

log = logging.getLogger(__name__)

EXAMPLE: Final = "static://orders=10.0.0.5:8080,10.0.0.6:8080;users=https://10.0.0.7:8443"

POLL: Final = 1.0
"""Seconds between two looks at the file."""

MAX_FILE: Final = 16 * 1024 * 1024
"""Bytes of a file that are read (threat 15)."""

Listings = dict[ServiceUrl, tuple[Instance, ...]]

_FIELDS: Final = {field.name for field in fields(Instance)} - {"service", "namespace"}


def open_backend(settings: Settings) -> Backend:
    """See :func:`meshlib.backends.open_backend`. Raises ValueError for an unusable address in the URL."""
    url = settings.registry
    if url.options:
        raise ValueError("static:// has no options (what follows a '?')")
    if url.path.startswith("/"):
        return Backend(StaticRegistry(_File(Path(url.path), settings.namespace)), None)
    return Backend(StaticRegistry(_Fixed(from_text(url.path, settings.namespace))), None)


class StaticRegistry:
    """:class:`~meshlib.backends.base.Registry` over something that is read with ``current()``."""

    routes: tuple[tuple[str, int], ...] = ()

    def __init__(self, source: _Fixed | _File, *, poll: float = POLL) -> None:
        self.source, self.poll = source, poll

    async def register(self, instance: Instance, ttl: float) -> None:  # noqa: ARG002 - nothing to do
        return None

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:  # noqa: ARG002 - always listed
        return True

    async def deregister(self, instance: Instance) -> None:  # noqa: ARG002 - nothing to do
        return None

    async def fetch(self, service: ServiceUrl) -> Listing:
        return Listing((await self._read()).get(service.name, ()), self.source.revision)

    async def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        loop, known, due = asyncio.get_running_loop(), None, 0.0
        while True:
            listing = await self.fetch(service)
            if known is None or listing.instances != known.instances or loop.time() >= due:
                known, due = listing, loop.time() + 0.9 * CONFIRM
                yield listing
            await asyncio.sleep(self.poll)

    async def services(self, namespace: str) -> list[str]:
        return sorted(url.service for url in await self._read() if url.namespace == namespace)

    async def close(self) -> None:
        return None

    async def _read(self) -> Listings:
        return self.source.current()


class _Fixed:
    revision = ""

    def __init__(self, listings: Listings) -> None:
        self.listings = listings

    def current(self) -> Listings:
        return self.listings


class _File:
    """The last good content of a file. ``revision`` is the time it was written, in nanoseconds."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.path, self.namespace, self.revision = path, namespace, ""
        self._good: Listings | None = None
        self._looked_at: object = None
        self._problem: tuple[type[RegistryError], str] = (RegistryUnavailable, "")

    def current(self) -> Listings:
        """What the file says, or said when it last was good. Raises :class:`RegistryUnavailable` (missing, unreadable) or
        :class:`InvalidAnswer` (not understood) while it never was."""
        look = self._look()
        if look != self._looked_at:
            self._looked_at = look
            self._reload()
        if self._good is None:
            kind, text = self._problem
            raise kind(text)
        return self._good

    def _look(self) -> tuple[int, ...] | str:
        """What changes with the file: followed through links, as they are how mounted configuration is swapped."""
        try:
            status = self.path.stat()
        except OSError as problem:
            return str(problem)
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def _reload(self) -> None:
        try:
            content, written = _read(self.path)
            self._good, self.revision = from_json(content, self.namespace), str(written)
        except (OSError, ValueError) as problem:
            kind = RegistryUnavailable if isinstance(problem, OSError) else InvalidAnswer
            self._problem = (kind, f"the static registry {self.path}: {problem}")
            kept = "its last good version stays" if self._good is not None else "no instance is known from it"
            log.warning("%s; %s", self._problem[1], kept)


def _read(path: Path) -> tuple[bytes, int]:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would have nobody writing
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ValueError(f"it is larger than {MAX_FILE} bytes")
    return content, status.st_mtime_ns


def from_text(text: str, namespace: str) -> Listings:
    """The instances of a URL's text. Raises ValueError with the part that is wrong."""
    if not text:
        raise ValueError("no instances are given")
    listings: Listings = {}
    for part in filter(None, text.split(";")):
        name, equals, addresses = part.partition("=")
        if not equals:
            raise ValueError(f"{part[:80]!r} is not of the form service=host:port,host:port")
        service = _service(name.strip(), namespace)
        if service in listings:
            raise ValueError(f"the service {name!r} is there twice")
        listings[service] = _instances(service, filter(None, (address.strip() for address in addresses.split(","))))
    return listings


def from_json(content: bytes, namespace: str) -> Listings:
    """The instances of a file's content. Raises ValueError with what is wrong."""
    try:
        document = msgspec.json.decode(content, type=dict[str, list[str | dict[str, Any]]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ValueError(f'{problem} (expected {{"orders": ["10.0.0.5:8080"]}})') from problem
    listings: Listings = {}
    for name, entries in document.items():
        service = _service(name, namespace)
        listings[service] = _instances(service, entries)
    return listings


def _service(name: str, namespace: str) -> ServiceUrl:
    with suppress(ConfigError):
        service = ServiceUrl.parse(name, namespace=namespace)
        if not service.instance:
            return service
    raise ValueError(f"{name[:80]!r} is no service name, such as 'orders' or 'shop.prod.orders'")


def _instances(service: ServiceUrl, entries: Iterable[str | dict[str, Any]]) -> tuple[Instance, ...]:
    return Listing.of([_instance(service, entry) for entry in entries]).instances


def _instance(service: ServiceUrl, entry: str | dict[str, Any]) -> Instance:
    try:
        given = _address(entry) if isinstance(entry, str) else _known(entry)
        instance = Instance.parse({"id": "-", **given, "service": service.service, "namespace": service.namespace})
    except (ValueError, InvalidAnswer) as problem:
        detail = problem.__cause__ if isinstance(problem, InvalidAnswer) else problem
        raise ValueError(f"{str(entry)[:80]!r} of {service}: {str(detail)[:200]}") from problem
    return instance if "id" in given else replace(instance, id=instance.netloc)


def _address(text: str) -> Mapping[str, Any]:
    scheme, separator, rest = text.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if not colon or port.endswith("]"):
        raise ValueError("a port is missing, as in 10.0.0.5:8080")
    if separator and not scheme:
        raise ValueError("a scheme is missing, as in https://10.0.0.5:8443")
    return {"host": host, "port": port, "scheme": scheme or "http"}


def _known(entry: dict[str, Any]) -> Mapping[str, Any]:
    """A typing error in a file that somebody wrote by hand is not passed over, as an unknown field of a registry is."""
    unknown = entry.keys() - _FIELDS
    if unknown:
        raise ValueError(f"unknown field {min(unknown)[:80]!r} (known: {', '.join(sorted(_FIELDS))})")
    if "host" not in entry or "port" not in entry:
        raise ValueError("host or port is missing")
    return entry
