"""The facts of the mesh: frozen, compared by value, swapped whole.

Everything that comes from a registry passes :meth:`Instance.parse` once, at ingestion; behind it an address is a literal
IP or a strict host name, and no text holds control characters (threats 12 and 13 of the threat model).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Final

from meshlib.errors import ConfigError, InvalidAnswer

# One label of a name. Look-ups also take "_", which foreign registrations may have; see registrable_name().
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_REGISTRABLE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(rf"({_NAME.pattern}\.{_NAME.pattern})?")
_SCHEME = re.compile(r"https?")
_ID = re.compile(r"[!-~]{1,255}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,512}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

MAX_LABELS: Final = 64
"""Labels an instance keeps; more are left out at ingestion."""

SHARED: Final = 512
"""Different texts, and sets of labels, that instances share, of each kind: those used last. More are kept once each."""

NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Status(Enum):
    """What an instance says of itself. Health as others see it is not part of it."""

    UP = "up"
    DRAINING = "draining"
    """It finishes what it has and wants nothing new: used only when nobody else is left."""
    MAINTENANCE = "maintenance"
    """An operator took it out: never picked, reachable only by its exact :class:`ServiceUrl`."""


_STATUSES = {status.value: status for status in Status}


def parse_host(host: str) -> str:
    """Return ``host`` as a canonical literal IP or a strict host name, else raise ValueError.

    All-digit "host names" (``2130706433``, ``127.1``, ``0x7f.1``) are refused: resolvers read them as addresses. So are
    scoped IPv6 addresses (``fe80::1%eth0``): the scope is free text, and means nothing on another host. Brackets belong
    around an IPv6 address only.
    """
    if _is_ipv4(host):
        return host
    if len(host) > 253 or "%" in host:
        raise ValueError("longer than 253 characters, or with a %")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    with suppress(ValueError):
        address = ipaddress.ip_address(bare)
        if bare == host or address.version == 6:
            return str(address)
    labels = host.removesuffix(".").split(".")
    if not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError("neither an IP address nor a host name")
    if labels[-1].isdigit() or labels[-1].lower().startswith("0x"):
        raise ValueError("a host name that resolvers would read as a number")
    return host.lower()


def _is_ipv4(host: str) -> bool:
    """True for a dotted quad in canonical form: what almost all instances have, told by the system at once."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True


def is_id(text: str) -> bool:
    """True for what may be the id of an instance: 1 to 255 printable ASCII characters without spaces."""
    return _ID.fullmatch(text) is not None


def is_text(text: str) -> bool:
    """True for what an attribute may hold: at most 512 characters, no control characters."""
    return _TEXT.fullmatch(text) is not None


def registrable_name(name: str) -> str | None:
    """None when ``name`` may be registered (starts with a letter, ``a-z0-9-``, ends alphanumeric, as Consul's DNS and
    Spring's gateway need), else the nearest name that may be."""
    if _REGISTRABLE.fullmatch(name):
        return None
    fixed = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-")
    return fixed if fixed[:1].isalpha() else f"s-{fixed}".strip("-")


@dataclass(frozen=True, slots=True)
class ServiceUrl:
    """``[mesh://][app.env.]service[/instance]``: names a service, or one exact instance, wherever a name is taken."""

    service: str
    namespace: str = ""
    instance: str = ""

    @classmethod
    def parse(cls, text: str | ServiceUrl, *, namespace: str = "") -> ServiceUrl:
        """Parse ``text``; ``namespace`` (``app.env``) is used where it names none. Raises :class:`ConfigError`."""
        if isinstance(text, ServiceUrl):
            return text if text.namespace or not namespace else replace(text, namespace=namespace)
        name, _, instance = text.removeprefix("mesh://").partition("/")
        labels = name.lower().split(".")
        if not name.isascii() or len(labels) not in (1, 3) or not all(_NAME.fullmatch(label) for label in labels):
            raise ConfigError(
                "service name",
                f"{text[:80]!r} is not of the form [mesh://][app.env.]service[/instance]",
                example="'orders', 'shop.prod.orders' or 'mesh://shop.prod.orders/orders-8080'",
            )
        if instance and not _ID.fullmatch(instance):
            raise ConfigError("service name", f"{text[:80]!r} has an unusable instance id", example="'orders/orders-8080'")
        return cls(labels[-1], ".".join(labels[:-1]) or namespace, instance)

    @property
    def name(self) -> ServiceUrl:
        """The same without the instance."""
        return replace(self, instance="") if self.instance else self

    def __str__(self) -> str:
        name = f"{self.namespace}.{self.service}" if self.namespace else self.service
        return f"{name}/{self.instance}" if self.instance else name


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a service, at one address.

    ``host`` is a literal IP or host name, ``weight`` 0 to 10 000, ``labels`` a read-only mapping, ``generation`` changes
    with every start of the process behind it, so that a re-used address is never taken for its predecessor.
    """

    service: str
    id: str
    host: str
    port: int
    scheme: str = "http"
    version: str = ""
    zone: str = ""
    weight: int = 1
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    status: Status = Status.UP
    generation: str = ""
    namespace: str = ""

    def __hash__(self) -> int:
        return hash((self.id, self.host, self.port, self.generation))

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What makes it the same peer: a change of any part needs new connections."""
        return (self.id, self.host, self.port, self.scheme, self.generation)

    @property
    def netloc(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> ServiceUrl:
        """Its exact name."""
        return ServiceUrl(self.service, self.namespace, self.id)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Instance:
        """Build an instance from untrusted ``fields`` (the attribute names). Unknown fields and bad labels are left out;
        a bad address, id or number raises :class:`InvalidAnswer`."""
        try:
            port, weight = _whole(fields["port"], 1, 65535), _whole(fields.get("weight", 1), 0, 10_000)
            return cls(
                service=_service(fields["service"]),
                id=_match(_ID, fields["id"]),
                host=parse_host(fields["host"]),
                port=port,
                scheme=_scheme(fields.get("scheme") or "http"),
                version=_said(fields.get("version") or ""),
                zone=_said(fields.get("zone") or ""),
                weight=weight,
                labels=parse_labels(fields.get("labels") or {}),
                status=_STATUSES[fields.get("status") or "up"],
                generation=_match(_TEXT, fields.get("generation") or ""),
                namespace=_namespace(fields.get("namespace") or ""),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as problem:
            known = fields.get("id") if isinstance(fields, Mapping) else None
            named = f" {known[:80]!r}" if isinstance(known, str) else ""
            raise InvalidAnswer(f"unusable instance{named}: {type(problem).__name__} {str(problem)[:200]}") from problem

    def fields(self) -> dict[str, Any]:
        """The attributes as plain JSON values, without defaults: the inverse of :meth:`parse`."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["labels"], plain["status"] = dict(self.labels), "" if self.status is Status.UP else self.status.value
        return {name: value for name, value in plain.items() if value not in ("", {})}


def _match(pattern: re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not allowed" if isinstance(text, str) else f"a {type(text).__name__} is no text")
    return text


def _shared(pattern: re.Pattern[str]) -> Callable[[Any], str]:
    """:func:`_match` for what many instances say alike: checked once, and one string for all of them."""
    return lru_cache(SHARED)(partial(_match, pattern))


_service, _namespace, _scheme, _label_key, _said = map(_shared, (_NAME, _NAMESPACE, _SCHEME, _LABEL_KEY, _TEXT))


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 8:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"not a whole number in {low}..{high}")
    return value


def parse_labels(labels: Mapping[Any, Any]) -> Mapping[str, str]:
    """The good ones of untrusted ``labels``, at most :data:`MAX_LABELS`, read-only."""
    try:
        return _labels(tuple(labels.items()))
    except TypeError:  # values that have no hash are no text either
        return _labels(tuple((key, value) for key, value in labels.items() if isinstance(value, str)))


@lru_cache(SHARED)
def _labels(pairs: tuple[tuple[Any, Any], ...]) -> Mapping[str, str]:
    """The same, and one mapping for all that come alike."""
    good: dict[str, str] = {}
    for key, value in pairs:
        if isinstance(key, str) and isinstance(value, str) and len(good) < MAX_LABELS:
            with suppress(ValueError):
                good[_label_key(key)] = _said(value)
    return MappingProxyType(good) if good else NO_LABELS


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a service at one moment. Instances are unique by id and ordered by it.

    ``suspects`` are ids that the registry no longer lists and that nothing has confirmed dead: they are used last.
    ``confirmed`` is the wall-clock time (seconds since the epoch) when a registry last said so; ``source`` is
    ``"registry"`` or ``"disk"``; ``revision`` is the registry's, for people to read.
    """

    service: ServiceUrl
    instances: tuple[Instance, ...] = ()
    suspects: frozenset[str] = frozenset()
    confirmed: float = 0.0
    source: str = "registry"
    revision: str = ""

    def age(self, now: float) -> float:
        """Seconds since a registry confirmed it, at wall-clock time ``now``."""
        return max(0.0, now - self.confirmed)
