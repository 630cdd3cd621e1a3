"""What a policy document says, checked: whatever is wrong with it is told with the path of the field, before it has any
effect."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from meshlib.errors import ConfigError
from meshlib.fields import built, number, unknown
from meshlib.governance.text import EXAMPLE, plain
from meshlib.model import ServiceUrl
from meshlib.patterns import Patterns, matcher, patterns
from meshlib.policies.match import Match
from meshlib.policies.overlay import ENFORCE, SHADOW, Rules
from meshlib.policies.plain import check, kind_of

MODES: Final = (ENFORCE, SHADOW)
LAST_VERSION: Final = 2**53 - 1
MOST_PLACES: Final = 256
"""Methods, or routes, of a document."""
YEAR: Final = 366 * 86_400.0

Places: TypeAlias = tuple[tuple[Patterns, Rules], ...]
Routes: TypeAlias = tuple[tuple[Match, Rules], ...]


@dataclass(frozen=True)
class Consumer:
    """Rules for those who call the service: for all of their calls, and for declared methods whose names match."""

    policies: Rules
    methods: Places

    def at(self, method: str) -> list[Rules]:
        """The rules for ``method`` (``"Orders.fetch"``; empty for clients without methods), the weakest first."""
        return [self.policies, *(rules for names, rules in self.methods if method and matcher(names)(method))]


@dataclass(frozen=True)
class Provider:
    """Rules for the service itself: for all of its requests, and for those that match."""

    policies: Rules
    routes: Routes


@dataclass(frozen=True)
class Document:
    """The rules for ``service`` in its ``version``. ``mode`` is ``"enforce"`` or ``"shadow"``; ``max_age`` the seconds for
    which it holds while nobody confirms it, None for ``MESH_POLICY_MAX_AGE``; ``content`` the plain data it was made of."""

    service: str
    version: int
    mode: str
    max_age: float | None
    note: str
    consumer: Consumer
    provider: Provider
    content: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The same for the same content, however it was written."""
        return hashlib.sha256(encoded(self.content, ordered=True)).hexdigest()


def encoded(content: Mapping[str, Any], *, indent: int | None = None, ordered: bool = False) -> bytes:
    """``content`` as JSON, with an ``indent`` for people; ``ordered`` in one form for all that is equal."""
    return json.dumps(content, indent=indent, sort_keys=ordered, ensure_ascii=False).encode()


def read(content: bytes | str | Mapping[str, Any], service: ServiceUrl, source: str) -> Document:
    """The document that ``content`` is, for ``service``; ``source`` is where it came from, for errors. Raises
    :class:`ConfigError` with the path of the field, its value, and what is allowed."""
    data = plain(content, source)
    try:
        return _document(data, service.name)
    except ConfigError as wrong:
        raise ConfigError(wrong.name, wrong.problem, source=source, example=wrong.example) from None


def _document(data: dict[str, Any], service: ServiceUrl) -> Document:
    _known(data, ("version", "service", "mode", "max_age", "note", "consumer", "provider"), "")
    named = data.get("service", str(service))
    if named != str(service):
        raise ConfigError("service", f"{named!r:.80} is not the one whose document it is", example=f'"{service}"')
    mode, note = data.get("mode", ENFORCE), data.get("note", "")
    if mode not in MODES:
        raise ConfigError("mode", f"{mode!r:.40} is none of {', '.join(MODES)}", example='"shadow"')
    if not isinstance(note, str):
        raise ConfigError("note", f"{note!r:.40} is no text", example='"less load for the database"')
    max_age = data.get("max_age")
    if max_age is not None:
        number("max_age", max_age, low=0, above=True, high=YEAR, example="86400")
    consumer, provider = _consumer(data.get("consumer")), _provider(data.get("provider"))
    return Document(str(service), version_of(data), mode, max_age, note, consumer, provider, data)


def version_of(data: Mapping[str, Any]) -> int:
    """Raises :class:`ConfigError` for what is no version."""
    version = data.get("version")
    if type(version) is not int or not 1 <= version <= LAST_VERSION:
        given = "is missing" if version is None else f"{version!r:.40} is none"
        raise ConfigError("version", f"{given}; a whole number from 1 on is needed", example='"version": 7')
    return version


def _consumer(data: Any) -> Consumer:
    data = _mapping(data, "consumer")
    _known(data, ("policies", "methods"), "consumer")
    methods = _mapping(data.get("methods"), "consumer.methods")
    _few(methods, "consumer.methods")
    places = []
    for name, given in methods.items():
        where = f"consumer.methods.{name:.80}"
        places.append((patterns(name, where), _rules(given, where)))
    return Consumer(_rules(data.get("policies"), "consumer.policies"), tuple(places))


def _provider(data: Any) -> Provider:
    data = _mapping(data, "provider")
    _known(data, ("policies", "routes"), "provider")
    routes = data.get("routes") or []
    if not isinstance(routes, list):
        example = '[{"when": {"path": "/orders/*"}, "policies": {"rate_limit": {"limits": ["100/s"]}}}]'
        raise ConfigError("provider.routes", f"{routes!r:.60} is no list", example=example)
    _few(routes, "provider.routes")
    found = []
    for at, route in enumerate(routes):
        where = f"provider.routes[{at}]"
        one = _mapping(route, where)
        _known(one, ("when", "policies"), where)
        when = built(Match, one.get("when") or {}, f"{where}.when", example='{"path": "/orders/*"}')
        found.append((when, _rules(one.get("policies"), f"{where}.policies")))
    return Provider(_rules(data.get("policies"), "provider.policies"), tuple(found))


def _rules(data: Any, where: str) -> Rules:
    given: dict[str, Mapping[str, Any] | None] = {}
    for kind, fields in _mapping(data, where).items():
        cls = kind_of(kind, where)
        if fields is None or fields is False:
            given[kind] = None
        else:
            check(cls, fields, f"{where}.{kind}")
            given[kind] = fields
    return Rules(where, given)


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigError(where, f"{data!r:.60} is no mapping", example=EXAMPLE)
    return data


def _known(data: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for name in data:
        if name not in names:
            place = f"{where}.{name:.40}".lstrip(".")
            raise unknown(place, name, names, EXAMPLE)


def _few(places: Any, where: str) -> None:
    if len(places) > MOST_PLACES:
        raise ConfigError(where, f"are {len(places)}; up to {MOST_PLACES} are allowed", example="patterns")
