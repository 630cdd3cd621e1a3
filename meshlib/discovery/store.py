"""The disk snapshot: what a process that starts while the registry is down begins with.

One JSON file per service, shared by all processes of an app. A reader trusts nothing: links, foreign owners, loose modes,
damage and files of another registry or service go to quarantine, and the app starts without (failure 24, threat 11).
A writer merges under a lock: newer knowledge wins, whoever writes last.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from meshlib.discovery.document import Document, build, merge
from meshlib.errors import ConfigError, InvalidAnswer, StoreError
from meshlib.files import check_directory, locked, make_directory, quarantine, read_private, replace_private
from meshlib.model import Instance, ServiceUrl, Snapshot

log = logging.getLogger(__name__)

MAX_FILE: Final = 16 * 1024 * 1024
"""Bytes a snapshot may have (threat 15)."""
MAX_QUARANTINED: Final = 5
"""Quarantined files that are kept for somebody to look at."""
MAX_SKEW: Final = 60.0
"""Seconds into the future at which a time is no longer put down to clocks that differ a little."""
LOCK_TIMEOUT: Final = 2.0
"""Seconds a writer waits for another one."""


def file_of(directory: Path, service: ServiceUrl, nothing: str) -> Path:
    """The file of ``service`` below ``directory``. Raises :class:`StoreError`, which says that it has ``nothing``, for what is
    no name of one: nothing but the labels of a name, and dots, may get into a path."""
    try:
        safe = ServiceUrl.parse(str(service.name)) == service.name
    except ConfigError:
        safe = False
    if not safe:
        raise StoreError(f"{str(service)[:80]!r} is no service name, so it has {nothing}")
    return directory / f"{service.name}.json"


class SnapshotStore:
    """Snapshots below ``directory`` of services of ``registry`` (its URL). Ages are in wall-clock seconds; a snapshot or
    tombstone older than ``max_age`` is not used. Blocking: call it in a worker thread. Safe to use from several at once."""

    def __init__(self, directory: Path, *, registry: str, max_age: float, clock: Callable[[], float] = time.time) -> None:
        self.registry, self.max_age, self.clock = registry, max_age, clock
        self.levels = [directory, directory / "snapshots"]
        self.levels.append(self.levels[-1] / hashlib.sha256(registry.encode()).hexdigest()[:16])
        self.directory = self.levels[-1]

    def load(self, service: ServiceUrl) -> Snapshot | None:
        """The snapshot of ``service``, or None (logged, unless there is just none). It never raises for what is on disk."""
        path = self._path(service)
        document = self._read(path, service.name)
        if document is None:
            return None
        age = self.clock() - document.confirmed
        if age > self.max_age:
            log.warning("the snapshot %s is %.0f s old and not used (MESH_SNAPSHOT_MAX_AGE is %.0f s); it is made anew once "
                        "the registry answers", path, age, self.max_age)  # fmt: skip
            return None
        if age < -MAX_SKEW:
            log.warning("the snapshot %s is from %.0f s in the future (a clock was set back); it counts as new", path, -age)
        return self._snapshot(service.name, document)

    def save(self, snapshot: Snapshot, *, tombstones: Mapping[str, float] | None = None) -> None:
        """Write ``snapshot``, merged with what is there. ``tombstones`` are ids and the wall-clock time at which each was
        known to be gone. Raises :class:`StoreError`; what was there before is then still there."""
        path = self._path(snapshot.service)
        ours = build(snapshot, tombstones or {}, registry=self.registry)
        try:
            for level in self.levels:
                make_directory(level)
            with locked(self.directory / ".lock", timeout=LOCK_TIMEOUT):
                theirs = self._read(path, snapshot.service.name)
                now = self.clock()
                content = merge(ours, theirs, now=now, skew=MAX_SKEW, max_age=self.max_age).encode()
                if len(content) > MAX_FILE:
                    raise StoreError(f"{path} would have {len(content)} bytes, more than {MAX_FILE}")
                replace_private(path, content)
        except (OSError, ValueError) as problem:
            raise StoreError(f"cannot write the snapshot {path}: {problem}") from problem

    def _path(self, service: ServiceUrl) -> Path:
        return file_of(self.directory, service, "no snapshot")

    def _read(self, path: Path, service: ServiceUrl) -> Document | None:
        try:
            for level in self.levels:
                check_directory(level)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as problem:
            log.warning("the snapshot %s is not used: %s", path, problem)
            return None
        try:
            document = Document.decode(read_private(path, MAX_FILE))
            document.expect(registry=self.registry, service=str(service))
        except FileNotFoundError:
            return None
        except OSError as problem:
            log.warning("the snapshot %s cannot be read: %s", path, problem)
            return None
        except ValueError as problem:
            kept = quarantine(path, now=self.clock(), most=MAX_QUARANTINED)
            log.warning("the snapshot %s is not used, and kept as %s to be looked at: %s; it is made anew once the registry "
                        "answers", path, kept, problem)  # fmt: skip
            return None
        return document

    def _snapshot(self, service: ServiceUrl, document: Document) -> Snapshot:
        now = self.clock()

        def gone(one: Instance) -> bool:
            """Known dead after it was listed; a suspect is in no listing."""
            when = document.tombstones.get(one.id)
            return when is not None and now - when <= self.max_age and (one.id in suspects or when > document.confirmed)

        suspects = frozenset(document.suspects)
        found = [instance_of(service, fields) for fields in document.instances]
        alive = {one.id: one for one in found if one is not None and not gone(one)}
        return Snapshot(
            service,
            tuple(alive[key] for key in sorted(alive)),
            suspects & alive.keys(),
            confirmed=min(document.confirmed, now),
            source="disk",
            revision=document.revision,
        )


def instance_of(service: ServiceUrl, fields: dict[str, Any]) -> Instance | None:
    try:
        return Instance.parse({**fields, "service": service.service, "namespace": service.namespace})
    except InvalidAnswer as problem:
        log.warning("an instance of the snapshot of %s is left out: %s", service, problem)
        return None
