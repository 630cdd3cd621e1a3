"""How limits are written: ``"100/second"``, ``"5000/10m"``, ``"1/500ms"``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from meshlib.errors import ConfigError

EXAMPLE: Final = '"100/second" or "5000/10m"'
LONGEST: Final = 86_400.0
SHORTEST: Final = 0.001
MOST: Final = 1_000_000_000

_FORM: Final = re.compile(r"\s*(?P<count>\d{1,12})\s*/\s*(?P<times>\d{0,9}(?:\.\d{1,9})?)\s*(?P<unit>[a-z]+)\s*", re.ASCII)
_UNITS: Final = {
    name: seconds
    for names, seconds in (
        ("ms millisecond milliseconds", 0.001),
        ("s sec second seconds", 1.0),
        ("m min minute minutes", 60.0),
        ("h hour hours", 3600.0),
        ("d day days", 86_400.0),
    )
    for name in names.split()
}


@dataclass(frozen=True, slots=True, order=True)
class Rate:
    """At most ``count`` in any window of ``seconds`` (float)."""

    seconds: float
    count: int

    @classmethod
    def parse(cls, text: Any) -> Rate:
        """The rate that ``text`` (or a rate) says. Raises ValueError with what is wrong."""
        if isinstance(text, Rate):
            return text
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{text!r:.40} is not of the form COUNT/WINDOW")
        unit = _UNITS.get(found["unit"])
        if unit is None:
            raise ValueError(f"{found['unit'][:20]!r} is no unit of time (known: ms, s, m, h, d and their names)")
        return cls(float(found["times"] or 1) * unit, int(found["count"]))._checked()

    def _checked(self) -> Rate:
        if not 1 <= self.count <= MOST:
            raise ValueError(f"a count of {self.count} is not in 1..{MOST}")
        if not SHORTEST <= self.seconds <= LONGEST:
            raise ValueError(f"a window of {self.seconds:g} s is not between {SHORTEST:g} s and {LONGEST:g} s")
        return self

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds:g}s"


def rates_of(limits: Iterable[Any], where: str) -> tuple[Rate, ...]:
    """What ``limits`` say, the shortest window first. Raises :class:`ConfigError` for what cannot be read, and for a limit
    that another one makes pointless: whoever wrote it meant something else."""
    try:
        rates = tuple(sorted(Rate.parse(text) for text in limits))
        if not rates:
            raise ValueError("no limit is given")
        for short, long in combinations(rates, 2):
            _check_pair(short, long)
    except ValueError as problem:
        raise ConfigError(where, str(problem), example=EXAMPLE) from None
    return rates


def _check_pair(short: Rate, long: Rate) -> None:
    if long.seconds == short.seconds:
        raise ValueError(f"two limits have the same window: {short} and {long}")
    if long.count <= short.count:
        raise ValueError(f"{short} can never be reached: {long} allows no more in a longer time")
    if long.count >= short.count * math.ceil(long.seconds / short.seconds):
        raise ValueError(f"{long} can never be reached: {short} allows no more than that anyway")
