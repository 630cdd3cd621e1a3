"""Documents on disk: what a process begins with, and goes on with while the control store is gone.

One JSON file per service, as the disk snapshots are: private, replaced in one step, with a checksum, and put aside when it is
damaged. Of two writers the higher version wins.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from meshlib.discovery.store import file_of
from meshlib.errors import StoreError
from meshlib.files import check_directory, locked, make_directory, quarantine, read_private, replace_private
from meshlib.governance.text import MOST_BYTES
from meshlib.model import ServiceUrl

log = logging.getLogger(__name__)

SCHEMA: Final = 1
MOST_FILE: Final = 4 * MOST_BYTES
MOST_QUARANTINED: Final = 5
LOCK_TIMEOUT: Final = 2.0
"""Seconds a writer waits for another one."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. ``content`` is the document as JSON, ``confirmed`` the wall-clock time at which a store last had it."""

    schema: int
    registry: str
    service: str
    version: int
    confirmed: float
    content: str
    checksum: str = ""

    def digest(self) -> str:
        """SHA-256 over all but the checksum."""
        rest = msgspec.structs.asdict(self)
        del rest["checksum"]
        return hashlib.sha256(msgspec.json.encode(rest, order="deterministic")).hexdigest()


class PolicyStore:
    """Documents below ``directory`` of services whose rules are kept in ``registry`` (its URL). Blocking; safe to use from
    several threads and processes at once."""

    def __init__(self, directory: Path, *, registry: str, clock: Callable[[], float] = time.time) -> None:
        self.registry, self.clock = registry, clock
        self._levels = [directory, directory / "policies"]
        self._levels.append(self._levels[-1] / hashlib.sha256(registry.encode()).hexdigest()[:16])

    def load(self, service: ServiceUrl) -> Kept | None:
        """What is kept for ``service``, or None (logged, unless there is just nothing). It never raises for what is on
        disk."""
        path = self.path(service)
        try:
            for level in self._levels:
                check_directory(level)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as problem:
            log.warning("the policies %s are not used: %s", path, problem)
            return None
        try:
            return self._decoded(read_private(path, MOST_FILE), str(service.name))
        except FileNotFoundError:
            return None
        except OSError as problem:
            log.warning("the policies %s cannot be read: %s", path, problem)
        except (ValueError, RecursionError) as problem:  # what msgspec raises is a ValueError
            kept = quarantine(path, now=self.clock(), most=MOST_QUARANTINED)
            log.warning("the policies %s are not used, and kept as %s: %s", path, kept, problem)
        return None

    def save(self, service: ServiceUrl, version: int, content: bytes, confirmed: float) -> None:
        """Keep a document, unless a later one is kept. Raises :class:`StoreError`; what was there before then still is."""
        path = self.path(service)
        kept = Kept(SCHEMA, self.registry, str(service.name), version, confirmed, content.decode())
        try:
            for level in self._levels:
                make_directory(level)
            with locked(self._levels[-1] / ".lock", timeout=LOCK_TIMEOUT):
                there = self.load(service)
                if there is None or (there.version, there.confirmed) < (version, confirmed):
                    whole = msgspec.structs.replace(kept, checksum=kept.digest())
                    replace_private(path, msgspec.json.encode(whole))
        except (OSError, ValueError) as problem:
            raise StoreError(f"cannot write the policies {path}: {problem}") from problem

    def path(self, service: ServiceUrl) -> Path:
        """The file of ``service``. Raises :class:`StoreError` for what is no name of one."""
        return file_of(self._levels[-1], service, "no policies on disk")

    def _decoded(self, content: bytes, service: str) -> Kept:
        kept = msgspec.json.decode(content, type=Kept)
        if kept.checksum != kept.digest():
            raise ValueError("damaged: its checksum is wrong")
        if (kept.schema, kept.registry, kept.service) != (SCHEMA, self.registry, service):
            raise ValueError(f"it is of schema {kept.schema}, of {kept.service[:80]!r} in {kept.registry[:80]!r}")
        return kept
