"""What an answer says of keeping it (RFC 9111, RFC 5861): as much of it as is heeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

FORBID: Final = ("no-store", "no-cache", "private")


@dataclass(frozen=True, slots=True)
class Says:
    """``keep``: whether it may be kept; ``fresh``: the seconds for which it is good, None where it does not say; ``stale``: the
    seconds after that, for which it may be given in place of an error, None where it does not say."""

    keep: bool
    fresh: float | None = None
    stale: float | None = None


def says(response: Any, varies: Callable[[str], bool]) -> Says:
    """What ``response`` says; ``varies`` tells whether a ``Vary`` is too much."""
    headers = response.headers
    given = directives(headers.get("cache-control", ""))
    if any(name in given for name in FORBID) or "set-cookie" in headers or varies(headers.get("vary", "")):
        return Says(keep=False)
    fresh = _seconds(given, "s-maxage", "max-age")
    if fresh is not None:
        fresh -= _seconds({"age": headers.get("age", "")}, "age") or 0.0
    strict = "must-revalidate" in given or "proxy-revalidate" in given
    return Says(keep=True, fresh=fresh, stale=0.0 if strict else _seconds(given, "stale-if-error"))


def directives(text: str) -> dict[str, str]:
    """The directives of a ``Cache-Control``, in lower case, and their values."""
    if not text:
        return {}
    pairs = (part.strip().partition("=") for part in text.lower().split(","))
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs if name}


def _seconds(given: dict[str, str], *names: str) -> float | None:
    """The first of them that is there; what cannot be read means at once (RFC 9111, section 4.2.1)."""
    for name in names:
        if name in given:
            text = given[name]
            return float(text[:12]) if text.isascii() and text.isdigit() else 0.0
    return None
