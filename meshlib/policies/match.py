"""Which calls a rule is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from meshlib import keys
from meshlib.errors import ConfigError
from meshlib.flow import Call
from meshlib.keys import header, parameter
from meshlib.patterns import Patterns, matcher, named_patterns, patterns

Test: TypeAlias = Callable[[Call], bool]
Text: TypeAlias = str | Iterable[str]
Named: TypeAlias = Mapping[str, Text] | tuple[tuple[str, Patterns], ...]


@dataclass(frozen=True, kw_only=True)
class Match:
    """Calls that match all of what is given; with nothing given, all.

    Values are patterns (see :mod:`meshlib.patterns`): exact, by prefix or a glob, or several in a list, one of which has to
    match. ``method`` is the verb; ``path`` is without the query and percent-decoded; ``headers`` by name, in whatever case;
    ``caller`` is what the header ``X-Mesh-Caller`` says, else the service that this process is; ``arguments`` those of declared
    methods by their Python names, else query parameters. What is not there, or empty, matches no pattern. Raises
    :class:`ConfigError`.
    """

    method: Text = ()
    path: Text = ()
    headers: Named = ()
    caller: Text = ()
    arguments: Named = ()

    def __post_init__(self) -> None:
        for name in ("method", "path", "caller"):
            value = getattr(self, name)
            object.__setattr__(self, name, patterns(value, name) if value != () else ())
        object.__setattr__(self, "method", tuple(each.upper() for each in self.method))
        for name, key in (("headers", header), ("arguments", parameter)):
            found = named_patterns(getattr(self, name), name)
            for each, _ in found:
                _check(name, each, key)
            object.__setattr__(self, name, found)

    def bind(self, caller: str = "") -> Test:
        """The function that tells whether a call matches, made by the service ``caller`` where it does not say itself."""
        tests = list(_tests(self, caller))
        if not tests:
            return _any
        return tests[0] if len(tests) == 1 else lambda call: all(test(call) for test in tests)

    def __str__(self) -> str:
        given = [f"{one.name}={_plain(getattr(self, one.name))}" for one in fields(self) if getattr(self, one.name)]
        return ", ".join(given) or "any call"


def _check(field: str, name: str, key: Callable[[str], Any]) -> None:
    try:
        key(name)
    except ConfigError as wrong:
        raise ConfigError(f"{field}.{name:.40}", wrong.problem, example=f'{field}={{"x-tenant": "acme*"}}') from None


def _any(_call: Call) -> bool:
    return True


def _tests(match: Any, own: str) -> Iterable[Test]:
    if match.method:
        verb = matcher(match.method)
        yield lambda call: verb(call.method)
    if match.path:
        path = matcher(match.path)
        yield lambda call: path(_path(call.path))
    for name, wanted in match.headers:
        yield _keyed(header(name), wanted)
    if match.caller:
        yield _caller(matcher(match.caller), own)
    for name, wanted in match.arguments:
        yield _keyed(parameter(name), wanted)


def _keyed(key: Callable[[Call], bytes | None], wanted: Patterns) -> Test:
    test = matcher(wanted)

    def keyed(call: Call) -> bool:
        value = key(call)
        return value is not None and test(value.decode("utf-8", "replace"))

    return keyed


def _caller(test: Callable[[str], bool], own: str) -> Test:
    said = keys.caller()

    def caller(call: Call) -> bool:
        value = said(call)
        name = own if value is None else value.decode("utf-8", "replace")
        return bool(name) and test(name)

    return caller


def _path(target: bytes) -> str:
    path = target.partition(b"?")[0]
    return (unquote_to_bytes(path) if b"%" in path else path).decode("utf-8", "replace")


def _plain(value: Any) -> str:
    if isinstance(value[0], tuple):
        return repr({name: found[0] if len(found) == 1 else list(found) for name, found in value})
    return repr(value[0] if len(value) == 1 else list(value))
