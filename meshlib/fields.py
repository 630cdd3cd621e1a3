"""From plain data, as documents have it, to checked facts: what is wrong is told with the path of its field."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Final, TypeVar

from meshlib.errors import ConfigError
from meshlib.text import like, shown

log = logging.getLogger(__name__)

T = TypeVar("T")

DOUBTFUL: Final = 1000.0
"""Seconds from which a time-out is probably one of milliseconds."""


def doubt(name: str, seconds: float | None) -> None:
    """Warn of a time-out called ``name`` that is probably meant in milliseconds."""
    if seconds is not None and seconds >= DOUBTFUL:
        log.warning("%s is %g seconds, which is %.0f minutes: was it meant in milliseconds? for example %g", name, seconds,
                    seconds / 60, seconds / 1000)  # fmt: skip


def built(cls: type[T], value: Any, where: str, *, example: str = "") -> T:
    """``value`` if it is a ``cls`` (a dataclass), else one made of it, a mapping of fields. Raises :class:`ConfigError` with
    ``where`` before the name of the field."""
    if isinstance(value, cls):
        return value
    names = [one.name for one in fields(cls) if one.init]  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        allowed = f"a {cls.__name__} or a mapping with {', '.join(names)} is allowed"
        raise ConfigError(where, f"{shown(value)} is neither; {allowed}", example=example)
    for name in value:
        if name not in names:
            raise unknown(f"{where}.{str(name)[:40]}", name, names, example)
    with located(where):
        return cls(**value)


def unknown(where: str, name: Any, names: Iterable[str], example: str = "") -> ConfigError:
    """The error for a field ``name``, at the path ``where``, that is none of ``names``."""
    known = list(names)
    allowed = f"{', '.join(known)} are allowed" if known else "nothing is"
    return ConfigError(
        where, f"is not known; {allowed}{like(str(name), known)}", example=example or next(iter(known), "nothing")
    )


@contextmanager
def located(where: str) -> Iterator[None]:
    """What raises :class:`ConfigError` in here, is told as being below ``where``."""
    try:
        yield
    except ConfigError as wrong:
        raise ConfigError(f"{where}.{wrong.name}", wrong.problem, source=wrong.source, example=wrong.example) from None


def number(name: str, value: Any, *, low: float, high: float, above: bool = False, example: str) -> float:
    """``value`` if it is a number from ``low`` (or ``above`` it) to ``high``. Raises :class:`ConfigError`."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not fits or (above and value == low):
        raise ConfigError(
            name, f"{value!r:.40} is not a number {'above' if above else 'from'} {low:g} to {high:g}", example=example
        )
    return value  # type: ignore[no-any-return]
