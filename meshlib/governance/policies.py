"""What operators do with documents: get, put, compare, roll back. Everything that is put was checked before."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from meshlib.backends.base import Entry, KeyValue
from meshlib.errors import CasConflict, ConfigError, RegistryError
from meshlib.governance.document import Document, encoded, read, version_of
from meshlib.governance.layout import ROOT, history_of, key_of, past_key, service_at
from meshlib.governance.text import plain
from meshlib.model import ServiceUrl

log = logging.getLogger(__name__)

Content: TypeAlias = "bytes | str | Mapping[str, Any]"
"""A document: text of JSON or YAML, or plain data."""

KEPT: Final = 20
"""Versions of a document that are kept."""
TRIES: Final = 5
"""How often a document is put again when somebody else has put one in between."""


@dataclass(frozen=True, slots=True)
class Past:
    """A version of a document: when it was put (seconds since the epoch), and its ``content``."""

    version: int
    put: float
    content: Mapping[str, Any]

    @property
    def note(self) -> str:
        """Why it was put, as its ``note`` says."""
        return str(self.content.get("note", ""))


class Policies:
    """The policy documents in ``kv``, of services in ``namespace`` where a name says nothing else. All methods may raise
    :class:`~meshlib.errors.RegistryError`."""

    def __init__(self, kv: KeyValue, *, namespace: str = "", wall: Callable[[], float] = time.time) -> None:
        self._kv, self._namespace, self._wall = kv, namespace, wall

    def validate(self, name: str | ServiceUrl, content: Content, *, source: str = "the document") -> Document:
        """The document that ``content``, which is from ``source``, would be; its version may be missing. Raises
        :class:`ConfigError` with the path of the field, its value, and what is allowed."""
        return read({"version": 1, **plain(content, source)}, self._service(name), source)

    async def names(self) -> list[str]:
        """The services that have a document, in all namespaces."""
        found = (service_at(entry.key) for entry in await self._kv.list(ROOT))
        return sorted(str(service) for service in found if service is not None)

    async def get(self, name: str | ServiceUrl) -> Document | None:
        """The document of a service, None without one. Raises :class:`ConfigError` for one that is of no use."""
        service = self._service(name)
        entry = await self._kv.get(key_of(service))
        return None if entry is None else read(entry.value, service, entry.key)

    async def put(
        self, name: str | ServiceUrl, content: Content, *, expected: int | None = None, note: str | None = None
    ) -> Document:
        """Put a document in force, as the version after the last one, or the one that it names, which must be higher. With
        ``expected``, only if that is the version now (0: none), else :class:`CasConflict`. Returns what was put. Raises
        :class:`ConfigError`."""
        service = self._service(name)
        self.validate(service, content)
        data = plain(content, "the document")
        for attempt in range(TRIES):
            entry = await self._kv.get(key_of(service))
            now = _version(entry)
            if expected is not None and expected != now:
                raise CasConflict(f"the policies of {service} have version {now}, not {expected}")
            document = self._numbered(service, data, max(now, await self._last(service)), note)
            try:
                await self._kv.put(
                    key_of(service), encoded(document.content, indent=2), expected=entry.revision if entry else 0
                )
            except CasConflict:
                if expected is not None or attempt == TRIES - 1:
                    raise
                continue
            await self._remember(service, document)
            return document
        raise AssertionError

    async def delete(self, name: str | ServiceUrl, *, expected: int | None = None, note: str = "deleted") -> Document:
        """Have the policies of the code alone hold again: an empty document is put. (A key that just vanishes is taken for a
        store that has lost its state, and ends nothing.)"""
        return await self.put(name, {}, expected=expected, note=note)

    async def history(self, name: str | ServiceUrl) -> list[Past]:
        """The versions that are kept, the newest first."""
        service = self._service(name)
        entries = await self._kv.list(history_of(service))
        return sorted(filter(None, map(_past, entries)), key=lambda past: -past.version)

    async def rollback(self, name: str | ServiceUrl, version: int, *, expected: int | None = None) -> Document:
        """Put the content of an earlier ``version`` in force again, as a new version. Raises :class:`ConfigError` when it is
        not kept."""
        past = await self._at(name, version)
        content = {key: value for key, value in past.content.items() if key != "version"}
        return await self.put(name, content, expected=expected, note=f"back to version {version}")

    async def diff(self, name: str | ServiceUrl, old: int, new: int | None = None) -> str:
        """What changed from version ``old`` to ``new`` (None: the one now), as a unified diff of indented JSON."""
        import difflib  # noqa: PLC0415 - for operators only

        before = (await self._at(name, old)).content
        if new is not None:
            after, label = (await self._at(name, new)).content, str(new)
        else:
            now = await self.get(name)
            after, label = ({}, "none") if now is None else (now.content, str(now.version))
        one, other = (encoded(each, indent=2, ordered=True).decode().splitlines() for each in (before, after))
        return "\n".join(difflib.unified_diff(one, other, f"version {old}", f"version {label}", lineterm=""))

    def _service(self, name: str | ServiceUrl) -> ServiceUrl:
        return ServiceUrl.parse(name, namespace=self._namespace).name

    def _numbered(self, service: ServiceUrl, data: Mapping[str, Any], last: int, note: str | None) -> Document:
        given = {key: value for key, value in data.items() if key not in ("version", "service")}
        version = version_of(data) if data.get("version") is not None else last + 1
        if version <= last:
            raise ConfigError("version", f"{version} is not higher than {last}, the last one", example=str(last + 1))
        if note is not None:
            given["note"] = note
        return read({"version": version, "service": str(service), **given}, service, key_of(service))

    async def _last(self, service: ServiceUrl) -> int:
        return max((past.version for past in await self.history(service)), default=0)

    async def _at(self, name: str | ServiceUrl, version: int) -> Past:
        kept = await self.history(name)
        found = next((past for past in kept if past.version == version), None)
        if found is None:
            there = ", ".join(str(past.version) for past in kept) or "none"
            raise ConfigError("version", f"{version} of {self._service(name)} is not kept; there are {there}")
        return found

    async def _remember(self, service: ServiceUrl, document: Document) -> None:
        """After it is in force: what is in the history was. What fails here has failed the put no more."""
        try:
            past = {"put": self._wall(), "document": document.content}
            await self._kv.put(past_key(service, document.version), encoded(past))
            for entry in (await self._kv.list(history_of(service)))[:-KEPT]:
                await self._kv.delete(entry.key)
        except RegistryError:
            log.warning("%s: version %d is in force, but not in the history", service, document.version, exc_info=True)


def _version(entry: Entry | None) -> int:
    """The version of what is there, 0 for what has none: something that is of no use may be replaced."""
    try:
        return 0 if entry is None else version_of(plain(entry.value, entry.key))
    except ConfigError:
        return 0


def _past(entry: Entry) -> Past | None:
    try:
        data = json.loads(entry.value)
        return Past(version_of(data["document"]), float(data["put"]), data["document"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ConfigError):
        return None  # somebody else's


Work: TypeAlias = Callable[[Policies], Coroutine[Any, Any, Any]]


class Operator:
    """The same for code that does not await: each method blocks until it is done, or raises :class:`TimeoutError`. ``perform``
    runs a coroutine that uses :class:`Policies` elsewhere."""

    def __init__(self, perform: Callable[[Work], Any]) -> None:
        self._perform = perform

    def names(self) -> list[str]:
        """See :meth:`Policies.names`."""
        found: list[str] = self._perform(lambda policies: policies.names())
        return found

    def get(self, name: str | ServiceUrl) -> Document | None:
        """See :meth:`Policies.get`."""
        found: Document | None = self._perform(lambda policies: policies.get(name))
        return found

    def put(
        self, name: str | ServiceUrl, content: Content, *, expected: int | None = None, note: str | None = None
    ) -> Document:
        """See :meth:`Policies.put`."""
        made: Document = self._perform(lambda policies: policies.put(name, content, expected=expected, note=note))
        return made

    def delete(self, name: str | ServiceUrl, *, expected: int | None = None, note: str = "deleted") -> Document:
        """See :meth:`Policies.delete`."""
        made: Document = self._perform(lambda policies: policies.delete(name, expected=expected, note=note))
        return made

    def history(self, name: str | ServiceUrl) -> list[Past]:
        """See :meth:`Policies.history`."""
        found: list[Past] = self._perform(lambda policies: policies.history(name))
        return found

    def rollback(self, name: str | ServiceUrl, version: int, *, expected: int | None = None) -> Document:
        """See :meth:`Policies.rollback`."""
        made: Document = self._perform(lambda policies: policies.rollback(name, version, expected=expected))
        return made

    def diff(self, name: str | ServiceUrl, old: int, new: int | None = None) -> str:
        """See :meth:`Policies.diff`."""
        text: str = self._perform(lambda policies: policies.diff(name, old, new))
        return text

    def validate(self, name: str | ServiceUrl, content: Content) -> Document:
        """See :meth:`Policies.validate`."""

        async def checked(policies: Policies) -> Document:
            return policies.validate(name, content)

        document: Document = self._perform(checked)
        return document
