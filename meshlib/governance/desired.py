"""Desired state: what the policy documents of many services are to be, what has to be done for it, and doing that.

A file holds one document, or several with ``---`` between them, or ``{"services": {"orders": {…}, "shop.prod.users": {…}}}``. A
document names its service, or its file does (``orders.yaml``). Versions are the store's business: one in a file is left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from meshlib.errors import ConfigError
from meshlib.governance.document import Document, encoded
from meshlib.governance.policies import Policies
from meshlib.governance.text import plain
from meshlib.model import ServiceUrl

Action: TypeAlias = Literal["create", "change", "unchanged", "delete"]

SUFFIXES: Final = (".json", ".yaml", ".yml")
_BETWEEN = re.compile(r"^---(?:[ \t].*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Wanted:
    """What the document of ``service`` is to be, and the file (and place) that says so."""

    service: ServiceUrl
    content: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Step:
    """What is to be done for one service. ``version`` is the one there is now (0: none, -1: one that is of no use), ``content``
    what it is to become (None: to be deleted), ``diff`` the difference as text."""

    service: ServiceUrl
    action: Action
    version: int
    content: Mapping[str, Any] | None
    diff: str


def files(path: Path) -> list[Path]:
    """The files of documents at ``path``, a file or a directory (with those below it). Raises :class:`ConfigError`."""
    found = [path]
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
    if not found or not path.exists():
        raise ConfigError(str(path), "has no documents" if path.exists() else "is not there", source="command line",
                          example="policies/, with orders.yaml in it")  # fmt: skip
    return found


def wanted(named: Iterable[tuple[str, str | bytes]], *, namespace: str = "") -> list[Wanted]:
    """What files say, each a name and its text. Services without a namespace are in ``namespace``. Raises
    :class:`ConfigError` for what is no document, and for a service that has two."""
    found: dict[ServiceUrl, Wanted] = {}
    for name, text in named:
        for one in _wanted(name, text, namespace):
            if one.service in found:
                raise ConfigError(str(one.service), f"has a document in {found[one.service].source} already",
                                  source=one.source, example="one document for each service")  # fmt: skip
            found[one.service] = one
    return list(found.values())


def _wanted(name: str, text: str | bytes, namespace: str) -> list[Wanted]:
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig", "replace")
    parts = [part for part in _BETWEEN.split(text) if part.strip()]
    found = []
    for number, part in enumerate(parts, 1):
        source = name if len(parts) == 1 else f"{name}, document {number}"
        data = plain(part, source)
        if set(data) == {"services"} and isinstance(data["services"], Mapping):
            found += [_one(service, content, source, namespace) for service, content in data["services"].items()]
        else:
            stem = Path(name).stem if len(parts) == 1 and Path(name).suffix in SUFFIXES else ""
            found.append(_one(str(data.get("service") or stem), data, source, namespace))
    return found


def _one(service: str, content: Any, source: str, namespace: str) -> Wanted:
    if not service or not isinstance(content, Mapping):
        what = "names no service" if not service else f"has for {service:.80} {content!r:.40}, which is no document"
        raise ConfigError("service", what, source=source, example="service: orders")
    url = ServiceUrl.parse(service, namespace=namespace).name
    given = {key: value for key, value in content.items() if key not in ("version", "service")}
    return Wanted(url, given, source)


def normal(content: Mapping[str, Any], *, note: bool = True) -> dict[str, Any]:
    """``content`` without what makes no difference: its number, what is as it would be anyway, and, unless ``note``, why it
    was put."""
    left_out = {"version", "service"} if note else {"version", "service", "note"}
    kept = {key: value for key, value in content.items() if key not in left_out and value not in (None, {}, "")}
    if kept.get("mode") == "enforce":
        del kept["mode"]
    return kept


def difference(before: Mapping[str, Any], after: Mapping[str, Any], names: tuple[str, str]) -> str:
    """As a unified diff of indented JSON; empty for none."""
    one, other = (encoded(each, indent=2, ordered=True).decode().splitlines() if each else [] for each in (before, after))
    return "\n".join(difflib.unified_diff(one, other, *names, lineterm=""))


async def plan(policies: Policies, desired: Iterable[Wanted], *, prune: bool = False, namespace: str = "") -> list[Step]:
    """What has to be done for ``desired``; with ``prune``, documents of other services of ``namespace`` are to be deleted.
    Raises :class:`ConfigError` for a document that would be refused, before anything is done."""
    steps = []
    for one in desired:
        check(policies, one)
        now = await _now(policies, one.service)
        steps.append(_step(one.service, now, one.content))
    if prune:
        there = [ServiceUrl.parse(name) for name in await policies.names()]
        meant = {step.service for step in steps}
        for service in there:
            now = await _now(policies, service)
            if service.namespace == namespace and service not in meant and normal(now[1], note=False):
                steps.append(_step(service, now, None))
    return sorted(steps, key=lambda step: str(step.service))


def check(policies: Policies, one: Wanted) -> Document:
    """The document that ``one`` would be. Raises :class:`ConfigError`, with its file and the path of the field."""
    try:
        return policies.validate(one.service, one.content)
    except ConfigError as wrong:
        raise ConfigError(wrong.name, wrong.problem, source=one.source, example=wrong.example) from None


async def _now(policies: Policies, service: ServiceUrl) -> tuple[int, Mapping[str, Any]]:
    """The version and content there are; of a document that is of no use, version 0 and nothing."""
    try:
        document = await policies.get(service)
    except ConfigError:
        return -1, {}
    return (0, {}) if document is None else (document.version, document.content)


def _step(service: ServiceUrl, now: tuple[int, Mapping[str, Any]], content: Mapping[str, Any] | None) -> Step:
    version, before = now[0], normal(now[1], note=bool(content and "note" in content))
    after = normal(content or {})
    action: Action = "change"
    if content is None:
        action = "delete"
    elif not normal(now[1], note=False) and version >= 0 and after:
        action = "create"
    elif before == after and version >= 0:
        action = "unchanged"
    label = f"version {version}" if version > 0 else "what is of no use" if version < 0 else "none"
    return Step(service, action, version, content, difference(before, after, (label, "none" if content is None else "wanted")))


async def perform(policies: Policies, step: Step, *, note: str | None = None) -> Document | None:
    """Do ``step``; None when there is nothing to do. Raises :class:`~meshlib.errors.CasConflict` when the document has changed
    since it was planned."""
    expected = None if step.version < 0 else step.version
    if step.action == "unchanged":
        return None
    if step.content is None:
        return await policies.delete(step.service, expected=expected, note=note or "deleted")
    return await policies.put(step.service, step.content, expected=expected, note=note)
