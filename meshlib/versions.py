"""Ranges of semantic versions, in the grammar of node-semver: ``^1.2``, ``~1.4.0``, ``>=2,<3``, ``1.x``, ``1.2 - 2``,
``^1 || ^3``. A comma joins comparators as a space does; an empty range, there anything, is refused.

As there, a pre-release is in a range only if a comparator names one of the same version (``>=2.0.0-rc.1``): whoever asks for
``^1`` does not get ``1.5.0-beta``. Versions are read and compared by ``semantic_version``; its own reading of these ranges
lets pre-releases in that do not belong there (``1.2.3`` in ``<=1.2.3-rc.2``), so they are taken apart here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import eq, ge, gt, le, lt
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from meshlib.errors import ConfigError

if TYPE_CHECKING:
    from semantic_version import Version

LONGEST: Final = 256
"""Characters of a range."""

_PART: Final = r"(0|[1-9][0-9]*|[xX*])"
_PARTIAL: Final = rf"[v=]*{_PART}(?:\.{_PART}(?:\.{_PART}(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?)?)?"
_HYPHEN: Final = re.compile(rf"{_PARTIAL}\s+-\s+{_PARTIAL}")
_COMPARATOR: Final = re.compile(rf"(~>|[<>]=?|[~^]|){_PARTIAL}")
_SPACE_WITHIN: Final = re.compile(r"(~>|[<>]=?|=|[~^])\s+")
_BETWEEN: Final = re.compile(r"[\s,]+")
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}

Partial: TypeAlias = tuple[list[int], str]
"""The numbers of a version, up to three, and its pre-release."""
Comparator: TypeAlias = tuple[Callable[[Any, Any], bool], "Version"]


def checked(text: Any, where: str) -> str:
    """``text`` if it is a range. Raises :class:`ConfigError` naming ``where``."""
    example = '"^1.2", "~1.4.0", ">=2,<3", "1.x" or "^1 || ^3"'
    try:
        found = _range(text if isinstance(text, str) else "")
    except ValueError:
        allowed = f"a range of versions of up to {LONGEST} characters is allowed"
        raise ConfigError(where, f"{text!r:.60} is none; {allowed}", example=example) from None
    if all(map(_empty, found)):
        raise ConfigError(where, f"{text!r:.60} is an empty range: no version is in it", example=example)
    return text  # type: ignore[no-any-return]


@lru_cache(maxsize=16_384)
def within(version: str, wanted: str) -> bool:
    """True when ``version`` (``1.4.2``, ``v2``, ``1.4``: missing parts are 0) is in the range ``wanted``. What is no version is
    in none."""
    from semantic_version import Version  # noqa: PLC0415 - only rules with versions need it

    try:
        found = Version.coerce(version.strip().lstrip("vV="))
    except ValueError:
        return False
    found.build = ()  # says nothing of the order
    return any(_passes(found, comparators) for comparators in _range(wanted))


def _passes(version: Version, comparators: tuple[Comparator, ...]) -> bool:
    if not all(compare(version, bound) for compare, bound in comparators):
        return False
    return not version.prerelease or any(bound.prerelease and _core(bound) == _core(version) for _, bound in comparators)


def _empty(comparators: tuple[Comparator, ...]) -> bool:
    """Whether two of them contradict each other, or one the first version of all."""
    from semantic_version import Version  # noqa: PLC0415 - see above

    lows = [(bound, compare is gt) for compare, bound in comparators if compare in (gt, ge, eq)]
    highs = [(bound, compare is lt) for compare, bound in comparators if compare in (lt, le, eq)]
    lows.append((Version("0.0.0-0"), False))
    return any(low > high or (low == high and (above or below)) for low, above in lows for high, below in highs)


def _core(version: Version) -> tuple[Any, ...]:
    return version.major, version.minor, version.patch


@lru_cache(maxsize=1024)
def _range(text: str) -> tuple[tuple[Comparator, ...], ...]:
    """Alternatives, each a set of comparators that all have to hold. Raises ValueError."""
    if len(text) > LONGEST or not text.isascii():
        raise ValueError(text)
    return tuple(tuple(_comparators(part.strip(" \t,"))) for part in text.split("||"))


def _comparators(text: str) -> Iterator[Comparator]:
    hyphen = _HYPHEN.fullmatch(text)
    if hyphen is not None:
        low, high = _partial(*hyphen.groups()[:4]), _partial(*hyphen.groups()[4:])
        yield _bound(">=", low)
        yield from _desugared("<=", high)
        return
    for part in _BETWEEN.split(_SPACE_WITHIN.sub(r"\1", text)):
        found = _COMPARATOR.fullmatch(part)
        if found is None:
            raise ValueError(part)
        yield from _desugared(found[1], _partial(*found.groups()[1:]))


def _partial(*parts: str | None) -> Partial:
    numbers: list[int] = []
    for part in parts[:3]:
        if part is None or part in "xX*":
            break
        numbers.append(int(part))
    return numbers, (parts[3] or "") if len(numbers) == 3 else ""


def _desugared(operator: str, partial: Partial) -> Iterator[Comparator]:
    """A comparator with as few as no numbers, or one of ``~`` and ``^``, as what it stands for."""
    numbers, _ = partial
    if not numbers:
        yield _bound("<", ([0, 0, 0], "0")) if operator in ("<", ">") else _bound(">=", partial)  # nothing, or anything
    elif operator in ("~", "~>"):
        yield from (_bound(">=", partial), _below(numbers[:2]))
    elif operator == "^":
        leading = next((number for number, value in enumerate(numbers) if value), len(numbers) - 1)
        yield from (_bound(">=", partial), _below(numbers[: leading + 1]))
    elif len(numbers) == 3:
        yield _bound(operator or "=", partial)
    else:
        yield from _of_short(operator, partial)


def _of_short(operator: str, partial: Partial) -> Iterator[Comparator]:
    numbers, _ = partial
    if operator == ">":
        yield _bound(">=", (_next(numbers), ""))
    elif operator == "<":
        yield _bound("<", ([*numbers, *[0] * (3 - len(numbers))], "0"))
    if operator in (">=", ""):
        yield _bound(">=", partial)
    if operator in ("<=", ""):
        yield _below(numbers)


def _next(numbers: list[int]) -> list[int]:
    return [*numbers[:-1], numbers[-1] + 1]


def _below(numbers: list[int]) -> Comparator:
    """Less than the next version that differs in the last of ``numbers``, its pre-releases included."""
    return _bound("<", ([*_next(numbers), 0, 0][:3], "0"))


def _bound(operator: str, partial: Partial) -> Comparator:
    from semantic_version import Version  # noqa: PLC0415 - see above

    numbers, prerelease = partial
    text = ".".join(map(str, [*numbers, 0, 0, 0][:3])) + (f"-{prerelease}" if prerelease else "")
    return _COMPARE[operator], Version(text)
