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


# What an answer is decoded into: thousands of objects in no cycles, so the garbage collector need not look at them.


class Check(msgspec.Struct, gc=False):
    id: str = field(name="CheckID", default="")
    status: str = field(name="Status", default="")

    @property
    def maintenance(self) -> bool:
        """Whether it is there because somebody put the service or its node into maintenance."""
        return self.id == "_node_maintenance" or self.id.startswith("_service_maintenance:")


class Node(msgspec.Struct, gc=False):
    address: str = field(name="Address", default="")


class Service(msgspec.Struct, gc=False):
    """``meta`` is JSON as it came: it is most of an entry, and only that of a new one is of interest."""

    id: str = field(name="ID")
    port: int = field(name="Port")
    address: str = field(name="Address", default="")
    meta: msgspec.Raw = field(name="Meta", default=msgspec.Raw(b"null"))
    created: int = field(name="CreateIndex", default=0)
    modified: int = field(name="ModifyIndex", default=0)


class Entry(msgspec.Struct, gc=False):
    """One line of ``/v1/health/service``."""

    service: Service = field(name="Service")
    node: Node = field(name="Node", default_factory=Node)
    checks: list[Check] | None = field(name="Checks", default=None)

    @property
    def critical(self) -> list[Check]:
        return [check for check in self.checks or () if check.status == "critical"]


class Read(msgspec.Struct, gc=False):
    """What an entry says: its instance, if it is one that may be listed, and whether the registration is one of ours."""

    instance: Instance | None
    ours: bool = False


_raws = msgspec.json.Decoder(list[msgspec.Raw] | None)
_entry = msgspec.json.Decoder(Entry)
_pairs = msgspec.json.Decoder(dict[str, str] | None)


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


def parse(entry: Entry, service: ServiceUrl, *, maintenance: bool = False) -> Read:
    """The instance of ``entry``, none when it is of another namespace. Raises :class:`InvalidAnswer`."""
    pairs = _unpacked(_meta(entry.service))
    ours = "mesh-generation" in pairs
    if pairs.get("mesh-namespace", "") != service.namespace:
        return Read(None, ours)
    weight = pairs.get("weight", "")
    instance = Instance.parse({
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
        "status": "maintenance" if maintenance else pairs.get("mesh-status", "up"),
        "labels": {k.removeprefix(_LABEL): v for k, v in pairs.items() if k not in _OURS and not k.startswith("mesh-")},
    })  # fmt: skip
    return Read(instance, ours)


def _meta(service: Service) -> dict[str, str]:
    try:
        return _pairs.decode(service.meta) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidAnswer(f"unusable instance {service.id[:80]!r}: its Meta: {problem}") from problem


class Reader:
    """Reads the answers of one watch. An entry that did not change keeps its instance: parsing is most of the cost.

    Of an entry, the hash of all that an instance is made of is remembered: 64 bits that do not meet by chance. Consul's
    ``ModifyIndex`` would say the same, but not after its servers lost their state.
    """

    def __init__(self, service: ServiceUrl) -> None:
        self.service = service
        self._known: dict[int, Read] = {}

    def read(self, body: bytes) -> tuple[Instance, ...]:
        """The instances alive, unique and ordered by id. Raises :class:`InvalidAnswer` when ``body`` is no listing."""
        before, self._known = self._known, {}
        return unique(list(self._alive(body, before)))

    def _alive(self, body: bytes, before: dict[int, Read]) -> Iterator[tuple[Service, Read]]:
        for entry in entries(body):
            critical, service = entry.critical, entry.service
            maintenance = bool(critical) and all(check.maintenance for check in critical)
            if critical and not maintenance:
                continue
            what = hash((service.id, service.address or entry.node.address, service.port, bytes(service.meta), maintenance))
            read = self._known[what] = before.get(what) or _parse_or_warn(entry, self.service, maintenance=maintenance)
            if read.instance:
                yield service, read


def entries(body: bytes) -> Iterator[Entry]:
    """The entries of a listing; one that is malformed is left out. One at a time: all at once are more garbage than is kept."""
    try:
        raws = _raws.decode(body) or ()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidAnswer(f"a listing that is no list in JSON: {problem}") from problem
    return (entry for raw in raws if (entry := _entry_or_none(raw)))


def _entry_or_none(raw: msgspec.Raw) -> Entry | None:
    try:
        return _entry.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        _warn(f"an entry of a listing is malformed: {problem}")
        return None


def _parse_or_warn(entry: Entry, service: ServiceUrl, *, maintenance: bool) -> Read:
    try:
        return parse(entry, service, maintenance=maintenance)
    except InvalidAnswer as problem:
        _warn(str(problem))
        return Read(None)


@functools.lru_cache(1024)
def _warn(text: str) -> None:
    """Once per text, within reason: a malformed instance is in every answer."""
    log.warning("left out: %s", text)


def unique(found: list[tuple[Service, Read]]) -> tuple[Instance, ...]:
    """One instance per id, ordered.

    Consul's ids are unique per agent only. One of ours that is there twice was registered again with another agent: the
    later registration is it, but one that takes calls before one in maintenance. Foreign ones of the same id (Spring's
    default is ``name-port``) are the same only at the same address; else the eldest keeps the id and the others get
    ``id@address``.
    """
    by_id = {read.instance.id: read.instance for _, read in found if read.instance}
    if len(by_id) < len(found):
        by_id = _told_apart(found)
    return tuple(map(by_id.__getitem__, sorted(by_id)))


def _told_apart(found: list[tuple[Service, Read]]) -> dict[str, Instance]:
    best: dict[tuple[str, str], tuple[Service, Instance]] = {}
    for service, read in found:
        if (one := read.instance) is not None:
            key = (one.id, "" if read.ours else one.netloc)
            if key not in best or _rank(service, one) > _rank(*best[key]):
                best[key] = (service, one)
    by_id: dict[str, Instance] = {}
    for _, one in sorted(best.values(), key=lambda pair: pair[0].created):
        name = f"{one.id}@{one.netloc}" if one.id in by_id else one.id
        by_id[name] = one if name == one.id else replace(one, id=name)
    return by_id


def _rank(service: Service, instance: Instance) -> tuple[bool, int]:
    return instance.status is not Status.MAINTENANCE, service.modified
