"""A strict reader of addresses, written apart from the product's: what may be dialled for a payload, and nothing else.

It reads JSON with the standard library, addresses with the resolver's own functions, and knows nothing of meshlib but the
names of fields.
"""

from __future__ import annotations

import json
import socket
import string
from typing import Any

import httpx2

from meshlib.model import Instance

NAME = frozenset(string.ascii_letters + string.digits + "_-")
Route = tuple[str, bytes | str, int]
"""Scheme, host (an address as its bytes, so that its spelling does not matter; a name in lower case), port."""


def read(text: bytes) -> Any:
    """``text`` as JSON, the last of two equal keys counting; None when it is none."""
    try:
        return json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def host(value: Any) -> bytes | str | None:
    """What a literal or a name stands for, None for anything else, and for whatever a resolver would take for a number."""
    if not isinstance(value, str) or not value.isascii() or not 0 < len(value) <= 253:
        return None
    inner = value[1:-1] if value[0] == "[" and value[-1] == "]" else ""
    for family, text in ((socket.AF_INET6, inner or value), (socket.AF_INET, value)):
        try:
            return socket.inet_pton(family, text)
        except (OSError, ValueError):
            pass
    return value.lower() if named(value) else None


def named(value: str) -> bool:
    """Whether it is a host name."""
    labels = (value.removesuffix(".")).split(".")
    fine = all(0 < len(label) < 64 and set(label) <= NAME and label[0] != "-" != label[-1] for label in labels)
    try:
        socket.inet_aton(value.rstrip("."))  # takes what resolvers take: 127.1, 0x7f.1, 2130706433
    except (OSError, ValueError):
        return fine and not labels[-1].isdigit()
    return False


def port(value: Any) -> int | None:
    """A whole number from 1 to 65535, as a number or as its digits."""
    if isinstance(value, str) and value and set(value) <= set(string.digits) and len(value) < 8:
        value = int(value)
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole and 1 <= value <= 65535 else None


def route(scheme: Any, address: Any, number: Any) -> Route | None:
    """Where to, None for nowhere."""
    target, at = host(address), port(number)
    return (scheme, target, at) if scheme in ("http", "https") and target is not None and at is not None else None


def of_address(text: str) -> Route | None:
    """The route of an address as somebody writes it: ``10.0.0.5:8080``, with a scheme or without."""
    scheme, separator, rest = text.strip().rpartition("://")
    address, _, number = rest.rpartition(":")
    return route(scheme if separator else "http", address, number)


def of_document(text: bytes) -> tuple[str, Route] | None:
    """Id and route of an instance's document."""
    fields = read(text)
    if not isinstance(fields, dict):
        return None
    to = route(fields.get("scheme") or "http", fields.get("host"), fields.get("port"))
    return (str(fields.get("id")), to) if to else None


def of_entry(text: bytes) -> tuple[str, Route] | None:
    """Id and route of a line of Consul's listing."""
    entry = read(text)
    service = entry.get("Service") if isinstance(entry, dict) else None
    if not isinstance(service, dict):
        return None
    node = entry.get("Node")
    address = service.get("Address") or (node.get("Address") if isinstance(node, dict) else None)
    to = route(_scheme(service.get("Meta")), address, service.get("Port"))
    return (str(service.get("ID")), to) if to else None


def _scheme(meta: Any) -> str:
    meta = meta if isinstance(meta, dict) else {}
    pieces, number = [], 0
    while isinstance(meta.get(f"mesh-more-{number}"), str):
        pieces.append(meta[f"mesh-more-{number}"])
        number += 1
    more = read("".join(pieces).encode()) if pieces else None
    whole = isinstance(more, dict) and all(isinstance(value, str) for value in more.values())
    return "https" if {**(more if whole else {}), **meta}.get("secure") == "true" else "http"


def dialled(instance: Instance) -> Route:
    """Where a client goes for ``instance``: its URL as the HTTP library takes it apart."""
    url = httpx2.URL(f"{instance.scheme}://{instance.netloc}/path")
    assert url.path == "/path", f"{instance.netloc!r} reaches into the path"
    assert not url.userinfo, f"{instance.netloc!r} has a user"
    target = host(url.host)
    assert target is not None, f"{url.host!r} is no host"
    return (url.scheme, target, url.port or {"http": 80, "https": 443}[url.scheme])


def clean(instance: Instance) -> bool:
    """Whether no text of it could break a line, a header or a terminal, and all of it has bounds."""
    texts = [instance.version, instance.zone, instance.generation, *instance.labels, *instance.labels.values()]
    return (
        0 < len(instance.id) < 256
        and all("!" <= character <= "~" for character in instance.id)
        and all(len(text) <= 512 and printable(text) for text in texts)
        and len(instance.labels) <= 64
        and 0 <= instance.weight <= 10_000
    )


def printable(text: str) -> bool:
    """No control character, and no end of a line by any name."""
    return not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 or one in "\u2028\u2029" for one in text)
