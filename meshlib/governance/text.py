"""From the text of a document, JSON or YAML, to plain data within bounds (threats 14, 15): no alias, no tag, nothing twice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from meshlib.errors import ConfigError, MissingExtra

MOST_BYTES: Final = 65_536
MOST_DEPTH: Final = 12
MOST_VALUES: Final = 4_096
LONGEST_NUMBER: Final = 2**63
"""Whole numbers stay below it, and above its negative."""

EXAMPLE: Final = '{"version": 7, "consumer": {"policies": {"retry": {"attempts": 5}}}}'


def plain(content: bytes | str | Mapping[str, Any], source: str) -> dict[str, Any]:
    """The mapping that ``content`` says: text of JSON, or of YAML when it does not begin with a brace, or a mapping of plain
    data. Raises :class:`ConfigError` with ``source``, which is a key or a file."""
    if isinstance(content, Mapping):
        data: Any = content
    else:
        text = _text(content, source)
        data = _json(text, source) if text.lstrip()[:1] == "{" else _yaml(text, source)
    if not isinstance(data, Mapping):
        raise ConfigError("document", f"is {type(data).__name__}, not a mapping", source=source, example=EXAMPLE)
    return _Bounds(source).checked(data)


def _text(content: bytes | str, source: str) -> str:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if len(raw) > MOST_BYTES:
        raise ConfigError("document", f"has {len(raw)} bytes; up to {MOST_BYTES} are allowed", source=source)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ConfigError("document", f"is no UTF-8: {problem}", source=source) from None


def _json(text: str, source: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r:.60} is there twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ConfigError("document", f"is nested more than {MOST_DEPTH} deep", source=source) from None
    except ValueError as problem:
        raise ConfigError("document", f"is no JSON: {str(problem)[:200]}", source=source, example=EXAMPLE) from None


def _yaml(text: str, source: str) -> Any:
    try:
        import yaml  # noqa: PLC0415 - of an extra
    except ImportError:
        raise MissingExtra("a policy document in YAML", "yaml", "pyyaml", source=source) from None
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _look_through(yaml, yaml.parse(text, Loader=loader), source)
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe one
    except RecursionError:
        raise ConfigError("document", f"is nested more than {MOST_DEPTH} deep", source=source) from None
    except (yaml.YAMLError, ValueError) as problem:
        where = " ".join(str(problem).split())
        raise ConfigError("document", f"is no YAML: {where[:200]}", source=source, example=EXAMPLE) from None


def _look_through(yaml: Any, events: Any, source: str) -> None:
    """Before anything is made of it: aliases multiply, tags make what is not plain, names that come twice hide one."""
    levels: list[_Level] = []
    for number, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError("document", "has anchors or aliases, which are not allowed", source=source)
        if getattr(event, "tag", None):
            raise ConfigError("document", f"has the tag {event.tag!r:.60}; tags are not allowed", source=source)
        if number > 4 * MOST_VALUES or len(levels) > MOST_DEPTH + 1:
            raise ConfigError("document", "is larger or deeper than allowed", source=source)
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            levels.pop()
            continue
        if levels and isinstance(event, yaml.NodeEvent):
            levels[-1].meet(getattr(event, "value", None), source)
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            levels.append(_Level(isinstance(event, yaml.MappingStartEvent)))


class _Level:
    """A mapping or a sequence: in a mapping, names and values take turns."""

    def __init__(self, mapping: bool) -> None:
        self._mapping, self._names, self._count = mapping, set[str](), 0

    def meet(self, value: str | None, source: str) -> None:
        """The next node."""
        name, self._count = self._mapping and self._count % 2 == 0, self._count + 1
        if name and value is not None:
            if value in self._names:
                raise ConfigError("document", f"{value!r:.60} is there twice", source=source)
            self._names.add(value)


class _Bounds:
    """Copies plain data, and raises for what is not plain, or too much."""

    def __init__(self, source: str) -> None:
        self._source, self._count = source, 0

    def checked(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        return self._mapping(data, "", 1)

    def _mapping(self, data: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
        for name in data:
            if not isinstance(name, str) or not name.isprintable():
                raise self._wrong(where, f"has the name {name!r:.40}, which is not printable text (in YAML: quote it)")
        return {name: self._value(value, f"{where}.{name:.60}".lstrip("."), depth) for name, value in data.items()}

    def _value(self, value: Any, where: str, depth: int) -> Any:
        self._count += 1
        if self._count > MOST_VALUES:
            raise self._wrong(where, f"is one more than the {MOST_VALUES} values that are allowed")
        if isinstance(value, (Mapping, list, tuple)):
            if depth >= MOST_DEPTH:
                raise self._wrong(where, f"is nested more than {MOST_DEPTH} deep")
            if isinstance(value, Mapping):
                return self._mapping(value, where, depth + 1)
            return [self._value(each, f"{where}[{at}]", depth + 1) for at, each in enumerate(value)]
        if value is None or isinstance(value, bool) or (isinstance(value, str) and _is_unicode(value)):
            return value
        if isinstance(value, int) and abs(value) < LONGEST_NUMBER:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise self._wrong(where, f"is {_shown(value)}; text, numbers, true, false, null, lists and mappings are allowed")

    def _wrong(self, where: str, problem: str) -> ConfigError:
        return ConfigError(where or "document", problem, source=self._source, example=EXAMPLE)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text)


def _shown(value: Any) -> str:
    if isinstance(value, (int, float)):
        return "a number out of bounds"
    return f"a {type(value).__name__}"
