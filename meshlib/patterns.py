"""Text with wildcards: exact (``"abc"``), by prefix (``"abc*"``), or a glob (``"a*c"``), where ``*`` stands for any run of
characters, slashes included. No regular expressions: rules come from documents, and matching must take linear time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeAlias

from meshlib.errors import ConfigError

Patterns: TypeAlias = tuple[str, ...]
"""Alternatives: one of them has to match."""

LONGEST: Final = 512
"""Characters of a pattern."""
MOST: Final = 64
"""Alternatives."""


def patterns(given: str | Iterable[str], where: str) -> Patterns:
    """``given``, one pattern or several, as a tuple. Raises :class:`ConfigError` naming ``where``."""
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    for each in found:
        if not isinstance(each, str) or not 1 <= len(each) <= LONGEST:
            raise _wrong(where, each)
    if not 1 <= len(found) <= MOST:
        raise ConfigError(where, f"has {len(found)} alternatives; 1 to {MOST} are allowed", example='"abc*"')
    return found


def named_patterns(given: Any, where: str) -> tuple[tuple[str, Patterns], ...]:
    """A mapping of names to patterns as sorted pairs, which can be hashed. Raises :class:`ConfigError`."""
    try:
        pairs = sorted(dict(given).items())
    except (TypeError, ValueError):
        raise ConfigError(where, f"{given!r:.60} is no mapping of names to patterns", example='{"track": "canary"}') from None
    for name, _ in pairs:
        if not isinstance(name, str) or not name:
            raise ConfigError(where, f"{name!r:.40} is no name", example='{"track": "canary"}')
    return tuple((name, patterns(value, f"{where}.{name}")) for name, value in pairs)


def _wrong(where: str, value: Any) -> ConfigError:
    allowed = f"text of 1 to {LONGEST} characters is allowed, in which * stands for any run of characters"
    return ConfigError(where, f"{value!r:.60} is no pattern; {allowed}", example='"abc", "abc*" or "a*c"')


@lru_cache(maxsize=4096)
def matcher(found: Patterns) -> Callable[[str], bool]:
    """The function that tells whether a text matches one of ``found``."""
    tests = [_single(each) for each in found]
    return tests[0] if len(tests) == 1 else lambda text: any(test(text) for test in tests)


def _single(pattern: str) -> Callable[[str], bool]:
    first, *rest = pattern.split("*")
    if not rest:
        return pattern.__eq__
    if not any(rest):
        return lambda text: text.startswith(first)
    *middle, last = rest
    return _glob(first, [part for part in middle if part], last)


def _glob(first: str, middle: list[str], last: str) -> Callable[[str], bool]:
    """The first place at which a part is found leaves most to the next ones, so nothing is tried twice."""

    def test(text: str) -> bool:
        at, end = len(first), len(text) - len(last)
        if at > end or not text.startswith(first) or not text.endswith(last):
            return False
        for part in middle:
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    return test
