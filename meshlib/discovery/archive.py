"""Disk snapshots for operators: looked at, verified, taken from one machine to another. Reading changes nothing here: what is
damaged stays where it is, and goes to quarantine when a process meets it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from meshlib.discovery.document import Document
from meshlib.discovery.store import MAX_FILE, MAX_SKEW, SnapshotStore, instance_of
from meshlib.errors import ConfigError, StoreError
from meshlib.files import check_directory, read_private
from meshlib.model import ServiceUrl, Snapshot

FORMAT: Final = "meshlib-snapshots"
QUARANTINED: Final = ".quarantined-"


@dataclass(frozen=True, slots=True)
class Held:
    """A file of the store. ``age`` are the seconds since a registry confirmed it; ``problem`` says why a process that starts
    would not use it (empty: it would), ``quarantined`` that one has put it aside. ``document`` is None when it is damaged."""

    path: Path
    service: str
    document: Document | None
    age: float | None
    problem: str
    quarantined: bool = False


def held(store: SnapshotStore) -> list[Held]:
    """All files of ``store``, ordered by name. Raises :class:`StoreError` for a directory that is not to be trusted."""
    try:
        for level in store.levels:
            check_directory(level)
        names = sorted(store.directory.iterdir())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as problem:
        raise StoreError(str(problem)) from problem
    return [_held(store, path) for path in names if path.suffix == ".json" or QUARANTINED in path.name]


def _held(store: SnapshotStore, path: Path) -> Held:
    service = path.name.partition(".json")[0]
    if QUARANTINED in path.name:
        return Held(path, service, None, None, "was put aside by a process that found it unusable", quarantined=True)
    try:
        document = Document.decode(read_private(path, MAX_FILE))
        document.expect(registry=store.registry, service=service)
    except (OSError, ValueError) as problem:
        return Held(path, service, None, None, str(problem))
    age = store.clock() - document.confirmed
    return Held(path, service, document, max(0.0, age), aged(age, store.max_age))


def aged(age: float, most: float) -> str:
    """Why a snapshot of that ``age`` is not used, or used with care."""
    if age > most:
        return f"is {age:.0f} s old, and not used: at most {most:.0f} s are allowed"
    return f"is from {-age:.0f} s in the future: a clock was set back" if age < -MAX_SKEW else ""


def exported(store: SnapshotStore, services: Iterable[str] = (), *, wall: Callable[[], float] = time.time) -> bytes:
    """What is usable of ``store`` (of ``services``, when any are named), as one document."""
    wanted = set(services)
    good = [one.document for one in held(store) if one.document is not None and (not wanted or one.service in wanted)]
    if missing := wanted - {one.service for one in good}:
        raise StoreError(f"there is no usable snapshot of {', '.join(sorted(missing))}")
    return msgspec.json.encode({
        "format": FORMAT, "exported": wall(), "registry": store.registry, "snapshots": good,
    })  # fmt: skip


class Archive(msgspec.Struct):
    """What :func:`exported` makes."""

    format: str
    registry: str
    snapshots: list[Document]
    exported: float = 0.0


def imported(store: SnapshotStore, content: bytes, *, any_registry: bool = False) -> list[str]:
    """Put what was exported into ``store``; where it holds something newer, that stays. Returns the services. Raises
    :class:`ConfigError` for what is no export, or one of another registry (unless ``any_registry``), before anything is
    written, and :class:`StoreError`."""
    archive = _read(content)
    if archive.registry != store.registry and not any_registry:
        raise ConfigError("the export", f"is of the registry {archive.registry[:80]!r}, not of {store.registry!r}",
                          source="its content", example="--any-registry, if they list the same")  # fmt: skip
    found = [(_snapshot(document), document) for document in archive.snapshots]
    for snapshot, document in found:
        store.save(snapshot, tombstones=document.tombstones)
    return [str(snapshot.service) for snapshot, _ in found]


def _read(content: bytes) -> Archive:
    try:
        if len(content) > 16 * MAX_FILE:
            raise ValueError("it is too large")
        archive = msgspec.json.decode(content, type=Archive)
        if archive.format != FORMAT:
            raise ValueError(f"its format is {archive.format[:40]!r}")
        for document in archive.snapshots:
            if document.checksum != document.digest():
                raise ValueError(f"the checksum of {document.service[:80]!r} is wrong")
            document.expect(registry=archive.registry, service=document.service)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as problem:
        raise _no_export(str(problem)) from None
    return archive


def _no_export(problem: Any) -> ConfigError:
    return ConfigError("the export", f"cannot be used: {problem!s:.200}", source="its content",
                       example="what `mesh snapshot export` writes")  # fmt: skip


def _snapshot(document: Document) -> Snapshot:
    service = ServiceUrl.parse(document.service)
    found = [one for fields in document.instances if (one := instance_of(service, fields)) is not None]
    return Snapshot(
        service, tuple(sorted(found, key=lambda one: one.id)), frozenset(document.suspects), document.confirmed, "disk",
        document.revision,
    )  # fmt: skip
