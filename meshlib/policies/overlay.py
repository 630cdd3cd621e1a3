"""A document's rules over the policies of the code, field by field; and what of it came from where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from meshlib.policies.base import Policy
from meshlib.policies.match import Match
from meshlib.policies.on import on
from meshlib.policies.plain import kind_of, lacks
from meshlib.policies.shadow import shadowed

ENFORCE: Final = "enforce"
SHADOW: Final = "shadow"

Given: TypeAlias = Mapping[str, "Mapping[str, Any] | None"]
"""From the kinds of policies to the fields that are given, or None where a policy of the code is switched off."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What one place of a document says; ``where`` is the path of the place."""

    where: str
    given: Given


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a document has to do with the policies in force at one place: its ``version``, its ``source`` (``"kv"``, or
    ``"disk"`` while nobody has confirmed it since the start), its ``mode``, and of each kind of policy the ``fields`` it set.
    ``off`` are the kinds it switched off, ``idle`` those of which it sets some field, but that have nothing here to set it in.
    ``problem`` says why it does not hold here, if it does not."""

    version: int
    source: str
    mode: str = ENFORCE
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()
    off: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    problem: str = ""

    def __str__(self) -> str:
        parts = [f"{kind}({', '.join(names)})" for kind, names in self.fields]
        parts += [f"{kind} is off" for kind in self.off] + [f"{kind} has nothing to set here" for kind in self.idle]
        parts += [f"NOT IN FORCE: {self.problem}"] if self.problem else []
        return f"policy document, version {self.version} ({self.source}, {self.mode}): {', '.join(parts) or 'nothing here'}"


@dataclass(frozen=True, slots=True)
class Overlaid:
    """The policies at one place, and what a document ``set`` of them: the fields of each kind."""

    policies: tuple[Policy, ...]
    set: tuple[tuple[str, tuple[str, ...]], ...] = ()
    off: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    def origin(self, version: int, source: str, mode: str) -> Origin:
        """With the document that did it."""
        return Origin(version=version, source=source, mode=mode, fields=self.set, off=self.off, idle=self.idle)


def joined(places: Iterable[Rules]) -> dict[str, tuple[str, Mapping[str, Any] | None]]:
    """Of several places of a document one: the later ones win, field by field. With each kind its path."""
    found: dict[str, tuple[str, Mapping[str, Any] | None]] = {}
    for place in places:
        for kind, fields in place.given.items():
            before = found.get(kind, ("", None))[1]
            found[kind] = (f"{place.where}.{kind}", None if fields is None else {**(before or {}), **fields})
    return found


def overlay(code: Sequence[Policy], places: Iterable[Rules], mode: str = ENFORCE) -> Overlaid:
    """``places`` of a document over the policies of the ``code``. Raises :class:`ConfigError` with the path of the field.

    In shadow mode those of the code stay in force, and what refuses is put above them as an observer."""
    rules = joined(places)
    below = {each.kind: each for each in code}
    off = tuple(kind for kind, (_, fields) in rules.items() if fields is None and kind in below)
    made, told, idle = [], [], []
    for kind, (where, fields) in rules.items():
        if fields is None:
            continue
        policy = _made(kind, fields, where, below.get(kind))
        if policy is None:
            idle.append(kind)
        elif mode == ENFORCE or policy.refuses:
            made.append(policy if mode == ENFORCE else shadowed(policy))
            told.append((kind, tuple(fields)))
        else:
            idle.append(kind)
    if mode == SHADOW:
        return Overlaid((*made, *code), tuple(told), (), tuple(idle))
    kept = (each for each in code if each.kind not in off and each.kind not in {policy.kind for policy in made})
    return Overlaid((*kept, *made), tuple(told), off, tuple(idle))


def overlay_routes(
    code: Sequence[Policy], whole: Rules, routes: Iterable[tuple[Match, Rules]], mode: str = ENFORCE
) -> Overlaid:
    """The same for a provider: ``whole`` is for all of its requests, ``routes`` are for those that match, over what the code
    has :class:`~meshlib.policies.on.on` the same match."""
    rules: dict[Match, list[Rules]] = {}
    for match, place in routes:
        rules.setdefault(match, []).append(place)
    below: dict[Match, list[Policy]] = {}
    for each in code:
        if isinstance(each, on):
            below.setdefault(each.match, []).extend(each.policies)
    found = overlay([each for each in code if not isinstance(each, on)], [whole], mode)
    policies, told, off, idle = list(found.policies), list(found.set), list(found.off), list(found.idle)
    for match in {**below, **rules}:
        part = overlay(below.get(match, ()), rules.get(match, ()), mode)
        policies += [on(match, *part.policies)] if part.policies else []
        told += [(f"{kind} on {match}", fields) for kind, fields in part.set]
        off += [f"{kind} on {match}" for kind in part.off]
        idle += [f"{kind} on {match}" for kind in part.idle]
    return Overlaid(tuple(policies), tuple(told), tuple(off), tuple(idle))


def _made(kind: str, fields: Mapping[str, Any], where: str, base: Policy | None) -> Policy | None:
    """None when it is only a field of what is not here."""
    cls = type(base) if base is not None else kind_of(kind, where.removesuffix(f".{kind}"))
    if base is None and lacks(cls, fields):
        return None
    return cls.of(fields, where, base)
