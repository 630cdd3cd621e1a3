"""Pickers: from a pool of endpoints make, once per change of the fleet, the function that chooses for each call.

A picker is ``(pool) -> choose`` and ``choose`` is ``(call) -> endpoint``; what costs time (rings, prefix sums) happens in the
first, never per call. A picker of one's own is such a function or object, given as it is or by the name of an entry point in
the group ``meshlib.pickers``. By name, ``mod_hash`` and ``consistent_hash`` hash the request's path, and ``sticky`` goes by
the cookie ``session``; for other keys make one: ``picker=ConsistentHash(header("x-user-id"))``.
"""

from __future__ import annotations

from typing import Final

from meshlib.balance.pickers.around import RegistryPicks, SlowStart, Zone
from meshlib.balance.pickers.base import Choose, Learner, Picker
from meshlib.balance.pickers.hashing import ConsistentHash, ModHash
from meshlib.balance.pickers.plain import least_request, random, round_robin, weighted
from meshlib.balance.pickers.quality import PeakEwma
from meshlib.balance.pickers.sticky import Sticky
from meshlib.balance.pickers.subset import Subset
from meshlib.errors import ConfigError
from meshlib.keys import Key, cookie, header, parameter, path
from meshlib.text import nearest

GROUP: Final = "meshlib.pickers"

_best = PeakEwma()

PICKERS: Final[dict[str, Picker]] = {
    "peak_ewma": _best,
    "least_request": least_request,
    "round_robin": round_robin,
    "weighted": weighted,
    "random": random,
    "zone": Zone(_best),
    "slow_start": SlowStart(_best),
    "registry": RegistryPicks(),
    "mod_hash": ModHash(path()),
    "consistent_hash": ConsistentHash(path()),
    "sticky": Sticky(cookie("session")),
    "subset": Subset(inner=_best),
}


def named(picker: str | Picker, *, source: str = "code") -> Picker:
    """The picker called ``picker``, built in or an entry point, or itself. Raises :class:`ConfigError`."""
    if callable(picker):
        return picker
    known = PICKERS.get(picker) if isinstance(picker, str) else None
    return known or _installed(picker, source)


def _installed(name: str, source: str) -> Picker:
    from importlib.metadata import entry_points  # noqa: PLC0415 - costs 10 ms, and few need it

    installed = entry_points(group=GROUP)
    found = [one for one in installed if one.name == name]
    if not found:
        known = ", ".join([*PICKERS, *sorted({one.name for one in installed})])
        near = nearest(str(name), [*PICKERS, *(one.name for one in installed)]) or "peak_ewma"
        raise ConfigError("MESH_PICKER" if source != "code" else "picker", f"{str(name)[:40]!r} is none of {known}",
                          source=source, example=near)  # fmt: skip
    try:
        picker = found[0].load()
    except Exception as problem:
        raise ConfigError("picker", f"the entry point {name!r} ({found[0].value}) cannot be loaded: {problem!r}",
                          source=source, example="my_app.pickers:least_connected") from problem  # fmt: skip
    if not callable(picker):
        raise ConfigError("picker", f"the entry point {name!r} ({found[0].value}) is not callable", source=source,
                          example="a function (pool) -> choose")  # fmt: skip
    return picker  # type: ignore[no-any-return]


__all__ = ["GROUP", "PICKERS", "Choose", "ConsistentHash", "Key", "Learner", "ModHash", "PeakEwma", "Picker", "RegistryPicks",
           "SlowStart", "Sticky", "Subset", "Zone", "cookie", "header", "least_request", "named", "parameter", "path", "random",
           "round_robin", "weighted"]  # fmt: skip
