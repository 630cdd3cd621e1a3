"""Checks of this machine: libraries, the state directory and what is in it, processes that share an entry."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Final

from meshlib.discovery.archive import held
from meshlib.discovery.store import SnapshotStore
from meshlib.discovery.wishes import groups
from meshlib.doctor.case import ERROR, WARNING, Case, Finding, Outcome
from meshlib.errors import StoreError
from meshlib.files import check_directory, lock_byte
from meshlib.settings import Settings

DISTRIBUTION: Final = "meshlib-cloud"
ROOM: Final = 64 * 1024 * 1024
"""Bytes that should be free on the disk of the state directory."""
REMOTE: Final = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ocfs2", "gfs2", "fuse.sshfs",
    "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse",
}  # fmt: skip
_REQUIREMENT = re.compile(r"""([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*([^;]*?)\s*;.*extra\s*==\s*["']([^"']+)["']""")


async def extras(_case: Case) -> Outcome:
    """The optional libraries, by the metadata of the installed distribution."""
    found, there = list[Finding](), list[str]()
    for extra, library, wanted in _requirements():
        try:
            version = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
        there.append(f"{library} {version}")
        if not _fits(version, wanted):
            what = f"{library} {version} is installed, but the extra {extra} wants {wanted}"
            found.append(Finding("extras.version", WARNING, what, f"pip install '{DISTRIBUTION}[{extra}]'"))
    return Outcome(", ".join(sorted(set(there))) or "none is installed", tuple(found))


def _requirements() -> Iterable[tuple[str, str, str]]:
    """The extra, the library, and its versions, of those that users meet."""
    with suppress(metadata.PackageNotFoundError):
        for text in metadata.requires(DISTRIBUTION) or ():
            match = _REQUIREMENT.match(text)
            if match and match[3] not in ("dev", "test", "docs", "frameworks", "examples"):
                yield match[3], match[1], match[2]


def _fits(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - nearly always there
    except ModuleNotFoundError:
        return True
    try:
        return SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidSpecifier:
        return True


# -- the state directory


async def state_directory(case: Case) -> Outcome:
    """Its owner and mode, whether it can be written, and what kind of disk it is on."""
    return await asyncio.to_thread(_state_directory, case.settings)


def _state_directory(settings: Settings) -> Outcome:
    path = settings.state_path
    there = next(each for each in (path, *path.parents) if os.path.exists(each))
    detail = f"{path}" if there == path else f"{path}, not made yet"
    wrong = _owned(path) if there == path else None
    closed = _writable(there, path)
    found = (wrong, closed) if closed else (wrong, _near(there), _room(there))
    return Outcome(detail, tuple(each for each in found if each is not None))


def _owned(path: Path) -> Finding | None:
    try:
        check_directory(path)
    except (OSError, ValueError) as problem:
        status = path.stat()
        if status.st_uid != os.geteuid():
            hint = f"a directory of its own for each user (MESH_STATE_DIR), or chown {os.geteuid()} {path}"
            return Finding("state.foreign_owner", ERROR, str(problem), hint)
        if path.is_dir() and status.st_mode & 0o022:
            return Finding("state.writable_by_others", ERROR, str(problem), f"chmod go-w {path}")
        return Finding("state.unusable", ERROR, str(problem), "set MESH_STATE_DIR to a directory of this user's")
    return None


def _writable(there: Path, path: Path) -> Finding | None:
    """Tried where it stands; where it is still to be made, that much is looked at only."""
    try:
        if there == path:
            with tempfile.TemporaryFile(dir=path):
                return None
        if os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids) and there.is_dir():
            return _makeable(there)
        problem = f"{there} is not to be written to"
    except OSError as error:
        problem = f"{error.strerror}"
    return _not_writable(path, problem)


def _makeable(there: Path) -> Finding | None:
    """Whether a directory can be made in ``there``: not in those of the kernel, which even root may not write to."""
    try:
        Path(tempfile.mkdtemp(prefix=".meshlib-doctor-", dir=there)).rmdir()
    except OSError as error:
        return _not_writable(there, f"{error.strerror}")
    return None


def _not_writable(path: Path, problem: str) -> Finding:
    what = f"the state directory cannot be written ({path}: {problem}): a start without the registry finds no snapshot"
    return Finding("state.not_writable", ERROR, what, "set MESH_STATE_DIR to a directory that this user can write to")


def _near(path: Path) -> Finding | None:
    kind = filesystem(path, _mounts())
    if kind not in REMOTE:
        return None
    what = f"the state directory is on a network file system ({kind}): locks and SQLite are not reliable there"
    return Finding("state.remote_disk", WARNING, what, "set MESH_STATE_DIR to a local disk")


def _mounts() -> str:
    with suppress(OSError):
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return ""


def filesystem(path: Path, mounts: str) -> str:
    """The type of the file system that ``path`` is on, by the text of /proc/self/mountinfo; empty where that says nothing."""
    real, best, kind = os.path.realpath(path), "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        parts = before.split()
        where = parts[4].encode().decode("unicode_escape") if len(parts) > 4 else ""
        inside = real == where or real.startswith(where.rstrip("/") + "/")
        if where and inside and len(where) >= len(best):
            best, kind = where, after.split(" ")[0]
    return kind


def _room(path: Path) -> Finding | None:
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free >= ROOM:
        return None
    what = f"only {free // 1024} KiB are free on the disk of the state directory"
    return Finding("state.full", WARNING, what, "make room, or set MESH_STATE_DIR to another disk")


# -- what is in it


async def snapshots(case: Case) -> Outcome:
    """The disk snapshots of this registry: their ages, and those that would not be used."""
    settings = case.settings
    store = SnapshotStore(
        settings.state_path, registry=str(settings.registry), max_age=settings.snapshot_max_age, clock=case.wall
    )
    try:
        files = await asyncio.to_thread(held, store)
    except StoreError as problem:
        return Outcome(str(problem), skipped=True)  # which the state directory's check has told
    findings = []
    for one in files:
        if one.quarantined:
            findings.append(
                Finding("snapshot.quarantined", WARNING, f"{one.path} {one.problem}", f"look at it, then rm {one.path}")
            )
        elif one.document is None:
            findings.append(Finding("snapshot.damaged", ERROR, f"{one.path}: {one.problem}", f"rm {one.path}"))
        elif one.problem:
            hint = "run a process that calls the service while the registry answers, or raise MESH_SNAPSHOT_MAX_AGE"
            findings.append(Finding("snapshot.expired", WARNING, f"the snapshot of {one.service} {one.problem}", hint))
    ages = [one.age for one in files if one.age is not None]
    detail = f"{len(ages)}, confirmed {min(ages):.0f} to {max(ages):.0f} s ago" if ages else "none yet"
    return Outcome(detail, tuple(findings))


async def processes(case: Case) -> Outcome:
    """Processes that serve one port share an entry by locks in the state directory: whether they can, and who does."""
    settings = case.settings
    if settings.registry.scheme in ("memory", "static"):
        return Outcome(f"{settings.registry.scheme}:// has no entries that processes could share", skipped=True)
    return await asyncio.to_thread(_processes, settings)


def _processes(settings: Settings) -> Outcome:
    findings, told = [], []
    if os.path.isdir(settings.state_path) and (problem := _locks(settings.state_path)):
        what = f"processes that serve one port cannot share their entry, so the workers of a server register apart: {problem}"
        findings.append(Finding("processes.no_locks", ERROR, what, "set MESH_STATE_DIR to a local disk"))
    now = time.monotonic()
    for group in groups(settings):
        if not group.alive:
            continue
        quiet = now - group.record.confirmed
        told.append(f"{group.record.id} is kept by process {group.registrar or '-'}")
        if quiet > 3 * settings.ttl:
            what = f"{group.record.id} is served here, but the registry has not confirmed it for {quiet:.0f} s"
            hint = f"see the log of process {group.registrar}" if group.registrar > 0 else "see the logs of its processes"
            findings.append(Finding("processes.stuck", ERROR, what, hint))
    return Outcome("; ".join(told) or "nobody is registered from here", tuple(findings))


def _locks(path: Path) -> str:
    """Why record locks do not work there; empty when they do."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            return "" if lock_byte(file.fileno(), 0) else "locks are refused"
    except PermissionError:
        return ""  # which the state directory's check has told
    except OSError as problem:
        return str(problem)
