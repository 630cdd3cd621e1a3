"""The content of a disk snapshot: its form, its checksum, and how two of them become one. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from meshlib.model import Snapshot

SCHEMA: Final = 1


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``confirmed`` and the tombstones are wall-clock seconds; ``instances`` are :meth:`Instance.fields`."""

    schema: int
    registry: str
    service: str
    confirmed: float
    revision: str
    instances: list[dict[str, Any]]
    suspects: list[str]
    tombstones: dict[str, float]
    checksum: str = ""

    @classmethod
    def decode(cls, content: bytes) -> Document:
        """The inverse of :meth:`encode`. Raises ValueError, saying what is wrong, for anything that was not encoded so."""
        try:
            document = msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise ValueError(f"damaged: {problem}") from problem
        if document.checksum != document.digest():
            raise ValueError("damaged: its checksum is wrong")
        return document

    def encode(self) -> bytes:
        """As JSON, with its checksum."""
        return msgspec.json.encode(msgspec.structs.replace(self, checksum=self.digest()))

    def digest(self) -> str:
        """SHA-256 over the canonical form of all but the checksum."""
        rest = msgspec.structs.asdict(self)
        del rest["checksum"]
        return hashlib.sha256(msgspec.json.encode(rest, order="deterministic")).hexdigest()

    def expect(self, *, registry: str, service: str) -> None:
        """Raise ValueError unless it is of this schema, registry and service."""
        if self.schema != SCHEMA:
            raise ValueError(f"its schema is {self.schema}, not {SCHEMA}")
        if (self.registry, self.service) != (registry, service):
            raise ValueError(f"it is of {self.service[:80]!r} in {self.registry[:80]!r}")

    def listed(self) -> dict[str, str]:
        """Ids and generations of the instances that the registry had listed: suspects are not among them."""
        listed = {str(one.get("id", "")): str(one.get("generation", "")) for one in self.instances}
        return {key: generation for key, generation in listed.items() if key not in self.suspects}


def build(snapshot: Snapshot, tombstones: Mapping[str, float], *, registry: str) -> Document:
    """The document of ``snapshot``."""
    return Document(
        SCHEMA,
        registry,
        str(snapshot.service.name),
        snapshot.confirmed,
        snapshot.revision,
        [instance.fields() for instance in snapshot.instances],
        sorted(snapshot.suspects),
        dict(tombstones),
    )


def merge(ours: Document, theirs: Document | None, *, now: float, skew: float, max_age: float) -> Document:
    """What to write, given what is on disk: the later listing, and the tombstones of both.

    A tombstone goes when it is older than ``max_age``, and when its instance was listed after it, or with another
    generation than the one that died. A listing on disk from more than ``skew`` seconds ahead was written before the clock
    was set back: it must not lock out all that come.
    """
    if theirs is None:
        winner, loser = ours, ours
    elif ours.confirmed < theirs.confirmed <= now + skew:
        winner, loser = theirs, ours
    else:
        winner, loser = ours, theirs
    tombstones = dict(loser.tombstones)
    for key, when in winner.tombstones.items():
        tombstones[key] = max(when, tombstones.get(key, when))
    listed, before = winner.listed(), loser.listed()

    def stands(key: str, when: float) -> bool:
        again = key in listed and (winner.confirmed > when or (key in before and before[key] != listed[key]))
        return now - when <= max_age and not again

    kept = {key: min(when, now) for key, when in sorted(tombstones.items()) if stands(key, min(when, now))}
    return msgspec.structs.replace(winner, tombstones=kept)
