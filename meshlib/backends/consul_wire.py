"""How instances look in Consul: Spring Cloud's conventions, and nothing lost.

    Meta   secure, zone, weight, version    as Spring Cloud Consul and its load balancer have them
           mesh-generation                  always there: the registration is one of ours
           mesh-status, mesh-namespace      where they say something
           every label that Consul takes    under its own name, so that foreign clients see it
           mesh-more-0 …                    the rest as JSON in pieces: Consul's keys and values are narrower than ours

Foreign registrations have none of the ``mesh-`` keys; what we do not know in their Meta are labels.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import field

from meshlib.errors import InvalidAnswer, RegistryError
from meshlib.model import Instance, ServiceUrl, Status

log = logging.getLogger(__name__)

_META_KEY = re.compile(r"(?!consul-)[A-Za-z0-9_-]{1,128}")
_META_VALUE, _META_PAIRS, _PLAIN_PAIRS = 512, 64, 40

_CALLABLE = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")

_OURS = frozenset({"secure", "zone", "weight", "version"})
_MORE, _LABEL, _NAMESPACE_TAG = "mesh-more-", "label:", "mesh-namespace="


class Check(msgspec.Struct):
    id: str = field(name="CheckID", default="")
    status: str = field(name="Status", default="")

    @property
    def maintenance(self) -> bool:
        """Whether it is there because somebody put the service or its node into maintenance."""
        return self.id == "_node_maintenance" or self.id.startswith("_service_maintenance:")


class Node(msgspec.Struct):
    address: str = field(name="Address", default="")


class Service(msgspec.Struct):
    id: str = field(name="ID")
    port: int = field(name="Port")
    address: str = field(name="Address", default="")
    meta: dict[str, str] | None = field(name="Meta", default=None)
    created: int = field(name="CreateIndex", default=0)
    modified: int = field(name="ModifyIndex", default=0)


class Entry(msgspec.Struct):
    """One line of ``/v1/health/service``."""

    service: Service = field(name="Service")
    node: Node = field(name="Node", default_factory=Node)
    checks: list[Check] | None = field(name="Checks", default=None)

    @property
    def alive(self) -> bool:
        return not any(check.status == "critical" and not check.maintenance for check in self.checks or ())

    @property
    def maintenance(self) -> bool:
        return any(check.status == "critical" and check.maintenance for check in self.checks or ())


_entries = msgspec.json.Decoder(list[Entry] | None)
_raws = msgspec.json.Decoder(list[msgspec.Raw] | None)
_entry = msgspec.json.Decoder(Entry)


def service_name(service: ServiceUrl) -> str:
    """The name Consul lists it under."""
    return f"{_prefix(service.namespace)}{service.service}"


def _prefix(namespace: str) -> str:
    return f"{namespace.replace('.', '-')}-" if namespace else ""


def tags(instance: Instance) -> list[str]:
    """Its tags: none, or its namespace, because the catalogue tells of tags and not of Meta."""
    return [_NAMESPACE_TAG + instance.namespace] if instance.namespace else []


def names(catalogue: Any, namespace: str) -> list[str]:
    """The services of ``namespace`` in a ``/v1/catalog/services`` answer (names to tags), as far as they can be called."""
    try:
        known = msgspec.convert(catalogue, dict[str, list[str] | None])
    except msgspec.ValidationError as problem:
        raise InvalidAnswer(f"the catalogue of services: {problem}") from problem
    found = set()
    for name, its_tags in known.items():
        spaces = {tag.removeprefix(_NAMESPACE_TAG) for tag in its_tags or () if tag.startswith(_NAMESPACE_TAG)}
        here = namespace in spaces and name.startswith(_prefix(namespace)) if namespace else not spaces
        if here and name != "consul":
            found.add(name.lower().removeprefix(_prefix(namespace)))
    return sorted(name for name in found if _CALLABLE.fullmatch(name))


def meta(instance: Instance) -> dict[str, str]:
    """Its Meta. Raises :class:`RegistryError` when its labels are more than Consul takes."""
    pairs = {
        "secure": "true" if instance.scheme == "https" else "false",
        "weight": str(instance.weight),
        "mesh-generation": instance.generation,
    }
    said = {
        "zone": instance.zone,
        "version": instance.version,
        "mesh-namespace": instance.namespace,
        "mesh-status": "" if instance.status is Status.UP else instance.status.value,
    }
    labels = {_LABEL + key if key in _OURS or key.startswith("mesh-") else key: value for key, value in instance.labels.items()}
    return _packed(pairs | {key: value for key, value in said.items() if value} | labels)


def _packed(pairs: Mapping[str, str]) -> dict[str, str]:
    plain = {key: value for key, value in pairs.items() if _META_KEY.fullmatch(key) and len(value.encode()) <= _META_VALUE}
    plain = dict(list(plain.items())[:_PLAIN_PAIRS])
    rest = {key: value for key, value in pairs.items() if key not in plain}
    pieces = _pieces(msgspec.json.encode(rest)) if rest else []
    plain |= {f"{_MORE}{number}": piece for number, piece in enumerate(pieces)}
    if len(plain) > _META_PAIRS:
        raise RegistryError("Consul cannot hold that many labels of that length")
    return plain


def _pieces(document: bytes) -> list[str]:
    """``document`` in values that fit: Consul counts bytes, and no character may be cut."""
    pieces = []
    while document:
        piece = document[:_META_VALUE].decode(errors="ignore")  # what it ignores is a cut character at the end
        pieces.append(piece)
        document = document[len(piece.encode()) :]
    return pieces


def _unpacked(stored: Mapping[str, str]) -> dict[str, str]:
    pieces: list[str] = []
    while f"{_MORE}{len(pieces)}" in stored:
        pieces.append(stored[f"{_MORE}{len(pieces)}"])
    plain = {key: value for key, value in stored.items() if not key.startswith(_MORE)}
    if not pieces:
        return plain
    try:
        return msgspec.json.decode("".join(pieces), type=dict[str, str]) | plain
    except (msgspec.DecodeError, RecursionError):
        return plain  # as with any bad label: left out


def parse(entry: Entry, service: ServiceUrl) -> Instance | None:
    """The instance of ``entry``, or None when it is of another namespace. Raises :class:`InvalidAnswer`."""
    pairs = _unpacked(entry.service.meta or {})
    if pairs.get("mesh-namespace", "") != service.namespace:
        return None
    status = pairs.get("mesh-status", "up")
    weight = pairs.get("weight", "")
    return Instance.parse({
        "service": service.service,
        "namespace": service.namespace,
        "id": entry.service.id,
        "host": entry.service.address or entry.node.address,
        "port": entry.service.port,
        "scheme": "https" if pairs.get("secure") == "true" else "http",
        "zone": pairs.get("zone", ""),
        "version": pairs.get("version", ""),
        "weight": min(int(weight), 10_000) if weight.isascii() and weight.isdigit() and len(weight) < 10 else 1,
        "generation": pairs.get("mesh-generation", ""),
        "status": "maintenance" if entry.maintenance else status,
        "labels": {k.removeprefix(_LABEL): v for k, v in pairs.items() if k not in _OURS and not k.startswith("mesh-")},
    })  # fmt: skip


class Reader:
    """Reads the answers of one watch. An entry that did not change keeps its instance: parsing is most of the cost."""

    def __init__(self, service: ServiceUrl) -> None:
        self.service = service
        self._body: bytes | None = None
        self._instances: tuple[Instance, ...] = ()
        self._known: dict[tuple[str, str], tuple[Service, bool, Instance | None]] = {}

    def read(self, body: bytes) -> tuple[Instance, ...]:
        """The instances alive, unique and ordered by id. Raises :class:`InvalidAnswer` when ``body`` is no listing."""
        if body != self._body:
            self._instances = unique(list(self._alive(body)))
            self._body = body
        return self._instances

    def _alive(self, body: bytes) -> Iterator[tuple[Service, Instance]]:
        before, self._known = self._known, {}
        for entry in entries(body):
            if entry.alive:
                key, what = (entry.node.address, entry.service.id), (entry.service, entry.maintenance)
                old = before.get(key)
                instance = old[2] if old and old[:2] == what else _parse_or_warn(entry, self.service)
                self._known[key] = (*what, instance)
                if instance:
                    yield entry.service, instance


def entries(body: bytes) -> list[Entry]:
    """The entries of a listing; one that is malformed is left out."""
    try:
        return _entries.decode(body) or []
    except (msgspec.ValidationError, UnicodeDecodeError):
        pass
    except (msgspec.DecodeError, RecursionError) as problem:
        raise InvalidAnswer(f"a listing that is not JSON: {problem}") from problem
    try:
        return [entry for raw in _raws.decode(body) or () if (entry := _entry_or_none(raw))]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidAnswer(f"a listing that is no list: {problem}") from problem


def _entry_or_none(raw: msgspec.Raw) -> Entry | None:
    try:
        return _entry.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        _warn(f"an entry of a listing is malformed: {problem}")
        return None


def _parse_or_warn(entry: Entry, service: ServiceUrl) -> Instance | None:
    try:
        return parse(entry, service)
    except InvalidAnswer as problem:
        _warn(str(problem))
        return None


@functools.lru_cache(1024)
def _warn(text: str) -> None:
    """Once per text, within reason: a malformed instance is in every answer."""
    log.warning("left out: %s", text)


def unique(found: list[tuple[Service, Instance]]) -> tuple[Instance, ...]:
    """One instance per id, ordered.

    Consul's ids are unique per agent only. One of ours that is there twice was registered again with another agent: the
    later registration is it, but one that takes calls before one in maintenance. Foreign ones of the same id (Spring's
    default is ``name-port``) are the same only at the same address; else the eldest keeps the id and the others get
    ``id@address``.
    """
    best: dict[tuple[str, str], tuple[Service, Instance]] = {}
    for service, one in found:
        key = (one.id, "" if "mesh-generation" in (service.meta or {}) else one.netloc)
        if key not in best or _rank(service, one) > _rank(*best[key]):
            best[key] = (service, one)
    by_id: dict[str, Instance] = {}
    for _, one in sorted(best.values(), key=lambda pair: pair[0].created):
        name = f"{one.id}@{one.netloc}" if one.id in by_id else one.id
        by_id[name] = one if name == one.id else replace(one, id=name)
    return tuple(by_id[name] for name in sorted(by_id))


def _rank(service: Service, instance: Instance) -> tuple[bool, int]:
    return instance.status is not Status.MAINTENANCE, service.modified
