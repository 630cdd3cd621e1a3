"""How each kind of setting is read from text. A reader takes its own results, too, and raises ValueError with what is wrong,
without a secret."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from meshlib.errors import ConfigError
from meshlib.model import NO_LABELS, ServiceUrl, is_id, is_text, parse_host, parse_labels, registrable_name
from meshlib.security.secret import Secret
from meshlib.text import nearest

SCHEMES: Final = ("memory", "local", "static", "consul", "etcd")


@dataclass(frozen=True, slots=True)
class RegistryUrl:
    """``scheme://host[:port][,host[:port]…][/path][?option=value]``, taken apart.

    ``hosts`` are ``(host, port)`` pairs in failover order, port 0 where none was given; ``path`` is what follows them;
    ``options`` the query. It never holds a secret.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    options: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)

    @classmethod
    def parse(cls, text: str) -> RegistryUrl:
        """Parse ``text``; raises ValueError with what is wrong (and without a password that was in it)."""
        scheme, colon, rest = text.partition("://")
        if not colon:
            raise ValueError("not a URL")
        if scheme not in SCHEMES:
            near = nearest(scheme, SCHEMES)
            raise ValueError(
                f"unknown scheme {scheme[:20]!r}" + (f", did you mean {near}://" if near else "")
                + f" (known: {', '.join(SCHEMES)})"
            )  # fmt: skip
        on_disk = scheme in ("memory", "local") or (scheme == "static" and rest.startswith("/"))
        if "@" in rest and not on_disk:  # wherever: a password may hold what would end the host
            raise ValueError("a URL is logged, so no user or password in it: use MESH_REGISTRY_USER and _PASSWORD")
        rest, _, query = rest.partition("?")
        options = _options(query)
        if scheme in ("memory", "local", "static"):
            return cls(scheme, (), rest, options)
        netloc, slash, path = rest.partition("/")
        hosts = tuple(_host_port(part) for part in netloc.split(","))
        return cls(scheme, hosts, slash + path, options)

    def __str__(self) -> str:
        hosts = ",".join((f"[{h}]" if ":" in h else h) + (f":{p}" if p else "") for h, p in self.hosts)
        query = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.scheme}://{hosts}{self.path}" + (f"?{query}" if query else "")


def _options(query: str) -> Mapping[str, str]:
    parts = [pair.partition("=") for pair in query.split("&") if pair]
    pairs = {name: value for name, _, value in parts}
    good = parse_labels(pairs)
    if len(good) != len(pairs):
        raise ValueError("its options (what follows the '?') are not of the form name=value&name=value")
    return good


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    bare_v6 = text.count(":") > 1 and not text.startswith("[")
    if not colon or bare_v6 or text.endswith("]"):
        host, port = text, ""
    if not host:
        raise ValueError("a host is missing")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"port {port[:10]!r} is not in 1..65535")
    return parse_host(host), int(port or 0)


def text(value: str) -> str:
    return str.strip(value)


def attribute(value: str) -> str:
    if not is_text(value.strip()):
        raise ValueError(f"{value[:64]!r} is longer than 512 characters or has control characters")
    return str.strip(value)


def instance_id(value: str) -> str:
    if not is_id(value):
        raise ValueError(f"{value[:64]!r} is no id: 1 to 255 printable ASCII characters without spaces")
    return value


def url_path(value: str) -> str:
    if not value.startswith("/") or not is_id(value):
        raise ValueError(f"{value[:64]!r} is no path: it starts with a slash and has no spaces")
    return value


def prefix(value: str) -> str:
    return url_path(value).rstrip("/")


def networks(value: str | Iterable[str]) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(_network(str(part).strip()) for part in parts if str(part).strip())


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as problem:
        raise ValueError(f"{text[:64]!r} is no network: {problem}") from None


def probe(value: str) -> str:
    return value if value == "tcp" else url_path(value)


def share(value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"{str(value)[:20]!r} is not a share from 0 to 1")
    return number


def service(value: str) -> str:
    better = registrable_name(value)
    if better is not None:
        raise ValueError(f"{value[:64]!r} is no service name that every registry accepts (try {better!r})")
    return value


def namespace(value: str) -> str:
    if not value:
        return ""
    try:
        return ServiceUrl.parse(value + ".x").namespace
    except ConfigError:
        raise ValueError(f"{value[:64]!r} is not of the form app.env") from None


def port(value: str | int) -> int:
    if not _in_range(value, 65535):
        raise ValueError(f"{str(value)[:20]!r} is not a port (0 to 65535; 0 lets the system choose)")
    return int(value)


def weight(value: str | int) -> int:
    if not _in_range(value, 10_000):
        raise ValueError(f"{str(value)[:20]!r} is not a whole number from 0 to 10000")
    return int(value)


def _in_range(value: str | int, most: int) -> bool:
    text = str(value)
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most


def seconds(value: str | float) -> float:
    number = pause(value)
    if number == 0:
        raise ValueError("0 is not a positive number of seconds")
    return number


def pause(value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{str(value)[:20]!r} is not a number of seconds") from None
    if not 0 <= number < 1e9:
        raise ValueError(f"{number} is not a positive number of seconds")
    return number


def labels(value: str | Mapping[str, str]) -> Mapping[str, str]:
    pairs = value if isinstance(value, Mapping) else dict(_pair(part) for part in value.split(",") if part.strip())
    good = parse_labels(pairs)
    if len(good) != len(pairs):
        raise ValueError(f"unusable label {next(str(key) for key in pairs if key not in good)[:64]!r}")
    return good


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text[:64]!r} is not of the form key=value")
    return key.strip(), value.strip()


def advertise(value: str) -> str:
    host, port = _host_port(value)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return value
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{host} is not an address that others can call")
    if ":" in host:
        return f"[{host}]:{port}" if port else host
    return value


def registry(value: str | RegistryUrl) -> RegistryUrl:
    return value if isinstance(value, RegistryUrl) else RegistryUrl.parse(value)


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value[:20]!r} is none of {', '.join(allowed)}")
        return value

    return parse


def secret(value: str | Secret) -> Secret:
    return value if isinstance(value, Secret) else Secret(str.strip(value))


def file(value: str) -> str:
    if value and not os.path.isfile(value):
        # Without a slash it may be the secret itself, in the wrong variable.
        raise ValueError(f"there is no file {value!r}" if "/" in value else "there is no file of that name")
    return value
