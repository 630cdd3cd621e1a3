"""A subset: which instances of a service are meant, as a fact that rules name and the balancer heeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from meshlib import versions
from meshlib.errors import ConfigError
from meshlib.fields import built
from meshlib.model import Instance
from meshlib.patterns import Patterns, matcher, named_patterns, patterns

MOST_INSTANCES: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The instances that match all of what is given; with nothing given, all.

    ``labels`` are patterns for labels by name (``{"track": "canary*"}``, several in a list: one of them), ``version`` a range
    of versions (see :mod:`meshlib.versions`), ``zone`` a pattern or several. ``instances`` takes so many of them, by rendezvous
    the same in every process, 0 all; for one that is out the next in rank stands in.

    ``otherwise`` is the next best, where none of them is healthy. Where that gives nobody either, anybody is called, unless
    the last one is ``strict``: then the call fails. With ``reachable``, those that did not answer a moment ago are not of it.
    Raises :class:`ConfigError`.
    """

    labels: Mapping[str, str | Iterable[str]] | tuple[tuple[str, Patterns], ...] = ()
    version: str = ""
    zone: str | Iterable[str] = ()
    instances: int = 0
    strict: bool = False
    reachable: bool = False
    otherwise: Subset | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", named_patterns(self.labels, "labels"))
        object.__setattr__(self, "zone", patterns(self.zone, "zone") if self.zone != () else ())
        if self.version != "":
            versions.checked(self.version, "version")
        if type(self.instances) is not int or not 0 <= self.instances <= MOST_INSTANCES:
            raise ConfigError("instances", f"{self.instances!r:.40} is not in 0..{MOST_INSTANCES}", example="instances=1")
        for name in ("strict", "reachable"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(name, f"{getattr(self, name)!r:.40} is neither true nor false", example=f"{name}=True")
        if self.otherwise is not None:
            object.__setattr__(self, "otherwise", built(Subset, self.otherwise, "otherwise", example='Subset(zone="b")'))

    def mismatch(self, instance: Instance) -> str | None:
        """Why ``instance`` does not match, None when it does. Whether it is healthy, or among the first :attr:`instances`, is
        for the balancer to say."""
        labels: Any = self.labels
        for name, wanted in labels:
            value = instance.labels.get(name)
            if value is None or not matcher(wanted)(value):
                return f"label {name} is {value!r}, not {' or '.join(wanted)}"
        if self.version and not versions.within(instance.version, self.version):
            return f"version {instance.version!r} is not in {self.version}"
        if self.zone and not matcher(self.zone)(instance.zone):  # type: ignore[arg-type]
            return f"zone {instance.zone!r} is not {' or '.join(self.zone)}"
        return None

    def __str__(self) -> str:
        given = [f"{one.name}={_plain(getattr(self, one.name))}" for one in fields(self) if getattr(self, one.name)]
        return f"Subset({', '.join(given)})"

    __repr__ = __str__


def _plain(value: Any) -> str:
    if isinstance(value, Subset):
        return str(value)
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return repr({name: found[0] if len(found) == 1 else list(found) for name, found in value})
    return repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
