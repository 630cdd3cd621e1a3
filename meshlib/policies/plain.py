"""Policies from plain data, as documents have them: by the name of their kind, field by field.

Nothing here knows a policy: what one takes is what its constructor takes, what it allows is what it checks itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, Final, TypeVar, get_args, get_type_hints

from meshlib.errors import ConfigError
from meshlib.fields import unknown
from meshlib.keys import named
from meshlib.policies.base import OTHERS, Policy
from meshlib.text import like

T = TypeVar("T")

_OPTION: Final = re.compile(r"\w+\((\w+)(=.*)?\)")
"""How policies name an option of theirs: ``retry(attempts=…)``."""

SCOPE: Final = "on"
"""The kind that holds others: documents say in their own way what their rules are for."""


def kind_of(name: Any, where: str) -> type[Policy]:
    """The class of policies of the kind ``name``: a public one of ours, or one that somebody has defined. Raises
    :class:`ConfigError` naming ``where``."""
    found = _ours(name) or OTHERS.get(name) if isinstance(name, str) else None
    if found is None:
        known = kinds()
        allowed = f"{', '.join(known)} are allowed{like(str(name), known)}"
        raise ConfigError(f"{where}.{str(name)[:40]}", f"is no kind of policy; {allowed}",
                          example='{"retry": {"attempts": 3}}')  # fmt: skip
    return found


def kinds() -> list[str]:
    """The kinds that a document of this process may name."""
    public = import_module("meshlib").__all__
    return sorted({*filter(_ours, public), *OTHERS})


def _ours(name: str) -> type[Policy] | None:
    package = import_module("meshlib")
    found = getattr(package, name, None) if name in package.__all__ else None
    fits = isinstance(found, type) and issubclass(found, Policy) and getattr(found, "kind", "") == name and name != SCOPE
    return found if fits else None


def lacks(cls: Any, given: Mapping[str, Any]) -> list[str]:
    """The fields that a policy cannot be without, and that are not ``given``."""
    return [name for name, takes in _takes(cls).items() if takes.default is Parameter.empty and name not in given]


def check(cls: Any, given: Any, where: str) -> None:
    """Raise :class:`ConfigError` for what cannot be ``given`` to a policy of class ``cls``, as far as that can be seen without
    the one of the code that it may be put over: where a field is lacking, only the names, and what is no plain data there."""
    if not isinstance(given, Mapping) or not lacks(cls, given):
        cls.of(given, where)
        return
    takes = _takes(cls)
    _check_names(takes, given, where, "")
    for name, value in given.items():
        _value(cls, name, value, f"{where}.{name}", None)


def _check_names(takes: Mapping[str, Parameter], given: Mapping[str, Any], where: str, example: str) -> None:
    for name in given:
        if name not in takes:
            raise unknown(f"{where}.{str(name)[:40]}", name, takes, example)


def made(cls: type[T], given: Any, where: str, over: T | None = None, *, example: str = "") -> T:
    """A ``cls`` (a policy, or a dataclass in one) with the fields that are ``given``, the others as ``over`` has them. Raises
    :class:`ConfigError` with the path of the field, below ``where``."""
    takes = _takes(cls)  # type: ignore[arg-type] # mypy takes a class with its instances' __hash__ for unhashable
    if not isinstance(given, Mapping):
        raise ConfigError(where, f"{given!r:.60} is no mapping of fields; {', '.join(takes)} are allowed", example=example)
    _check_names(takes, given, where, example)
    below = {} if over is None else _options(over, takes, given)
    values = {name: _value(cls, name, value, f"{where}.{name}", below.get(name)) for name, value in given.items()}
    for name, each in takes.items():
        if each.default is Parameter.empty and name not in below and name not in values:
            raise ConfigError(f"{where}.{name}", f"is missing, and {cls.__name__} cannot be without", example=example)
    with _placed(where, cls):
        return _construct(cls, takes, below | values)  # type: ignore[no-any-return]


def _construct(cls: Any, takes: Mapping[str, Parameter], values: dict[str, Any]) -> Any:
    several = [name for name, each in takes.items() if each.kind is Parameter.VAR_POSITIONAL]
    positional = values.pop(several[0], ()) if several else ()
    return cls(*positional, **values)


@lru_cache(maxsize=256)
def _takes(cls: Any) -> dict[str, Parameter]:
    """What the constructor of ``cls`` takes. ``*limits`` has no default, for without there is nothing to do."""
    return {name: each for name, each in signature(cls).parameters.items() if each.kind is not Parameter.VAR_KEYWORD}


def _options(over: Any, takes: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """What ``over`` was made of, without what contradicts a field that is ``given``."""
    options = over.options() if isinstance(over, Policy) else {name: getattr(over, name) for name in takes}
    either = getattr(over, "either", ())
    if any(name in given and (given[name] is not None or "None" not in _hint_text(type(over), name)) for name in either):
        options = {name: value for name, value in options.items() if name not in either}
    return options


def _value(cls: Any, name: str, value: Any, where: str, below: Any) -> Any:
    """``value`` of a document as the field takes it."""
    if value is None:
        return None
    if name == "key" and isinstance(value, str):
        return value if "str" in _hint_text(cls, name) else named(value, where)
    takes = _takes(cls)[name]
    if takes.kind is Parameter.VAR_POSITIONAL:
        return tuple(value) if isinstance(value, list) else (value,)
    hint = _hint_text(cls, name)
    if "Callable" in hint and not any(plain in hint for plain in ("str", "int", "float", "Mapping")):
        raise ConfigError(where, f"takes a function, which a document cannot have ({value!r:.40} is plain data)",
                          example="null, or set it in code")  # fmt: skip
    inner = _dataclass(cls, name) if isinstance(value, Mapping) else None
    if inner is not None:
        return made(inner, value, where, below if isinstance(below, inner) else None)
    return tuple(value) if isinstance(value, list) and hint != "Any" else value


def _hint_text(cls: Any, name: str) -> str:
    """How the annotation of a field is written, without the arguments of functions that it takes."""
    text = next((str(each.type) for each in fields(cls) if each.name == name), "") if is_dataclass(cls) else ""
    return re.sub(r"\[\[[^]]*\][^]]*\]", "", text)


@lru_cache(maxsize=1024)
def _dataclass(cls: Any, name: str) -> Any:
    """The dataclass among what a field takes, if there is one: annotations are looked up one by one, for others may name
    libraries that are not there."""
    owner = type("_", (), {"__module__": cls.__module__, "__annotations__": {name: _annotation(cls, name)}})
    try:
        hint = get_type_hints(owner)[name]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None
    return next((each for each in (hint, *get_args(hint)) if isinstance(each, type) and is_dataclass(each)), None)


def _annotation(cls: Any, name: str) -> Any:
    return next((each.type for each in fields(cls) if each.name == name), "None")


@contextmanager
def _placed(where: str, cls: Any) -> Iterator[None]:
    """What raises :class:`ConfigError` in here names its field as policies do in code: told with its path in the document."""
    try:
        yield
    except ConfigError as wrong:
        several = next((f".{name}" for name, each in _takes(cls).items() if each.kind is Parameter.VAR_POSITIONAL), "")
        own = {getattr(cls, "kind", ""), cls.__name__}
        place = f"{where}{several}" if wrong.name in own else _below(where, own, wrong.name)
        raise ConfigError(place, wrong.problem, source=wrong.source, example=wrong.example) from None
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as wrong:
        raise ConfigError(where, f"cannot be used: {str(wrong)[:200]}") from wrong


def _below(where: str, own: set[str], name: str) -> str:
    option = _OPTION.fullmatch(name)
    if option:
        return f"{where}.{option[1]}"
    first, dot, rest = name.partition(".")
    if first in own:
        return f"{where}{dot}{rest}"
    return f"{where}.{name}"
