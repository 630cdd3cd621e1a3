"""Which instances a call may go to, before one of them is chosen; and where else it goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias

from meshlib.errors import ConfigError
from meshlib.fields import built, located, number
from meshlib.flow import Layer
from meshlib.keys import Key, checked, named
from meshlib.model import ServiceUrl
from meshlib.policies.base import Policy, Site
from meshlib.policies.match import Match
from meshlib.subsets import Subset

MOST_RULES: Final = 64
MOST_SHARES: Final = 16

Place: TypeAlias = Subset | str
"""A subset, or the name of one."""

_EXAMPLE: Final = 'Subset(version="^2"), or a name of route(subsets=)'


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A copy of ``percent`` of the calls goes to the subset ``to``, of the same service or of ``service``, in the background,
    with the header ``X-Mesh-Shadow: 1``; its answer is thrown away. Nobody else than the subset ever gets a copy. Only calls
    whose body can be sent twice are copied, and only as long as not too many copies are under way (event
    ``route.mirror_dropped``)."""

    to: Place | None = None
    service: str = ""
    percent: float = 100.0

    def __post_init__(self) -> None:
        if self.to is None and not self.service:
            raise ConfigError("to", "is not given, nor is service: copies would go where their calls go", example=_EXAMPLE)
        object.__setattr__(self, "to", _place(self.to, "to"))
        number("percent", self.percent, low=0, above=True, high=100, example="percent=10")
        if self.service:
            _service(self.service, "service")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is done with calls that match ``when``: all go to the subset ``to``, or each to one of ``split``, a mapping of
    subsets to their shares: by lot, or by ``key`` (see :mod:`meshlib.keys`; as text ``"header:x-user-id"``).

    Calls with the same key go to the same subset, and stay there when its share grows at the cost of one other: a key has a
    place from 0 to 100, and subsets have stretches of it, in the order of their names. Calls without the key go by lot.

    ``mirror`` sends copies elsewhere. ``failover`` names services to go to when no instance of this one is reachable, the first
    that has one; calls that were sent already stay where they are. A rule may do nothing: its calls are exempt from later
    ones. Raises :class:`ConfigError`.
    """

    name: str = ""
    when: Match = field(default_factory=Match)
    to: Place | None = None
    split: Mapping[Place, float] | tuple[tuple[Place, float], ...] = ()
    key: Key | str | None = None
    mirror: Mirror | None = None
    failover: str | Iterable[str] = ()

    def __post_init__(self) -> None:
        checks: dict[str, Any] = {
            "when": built(Match, self.when, "when", example='Match(path="/v2/*")'),
            "to": _place(self.to, "to"),
            "split": _shares(self.split),
            "mirror": None if self.mirror is None else built(Mirror, self.mirror, "mirror", example='Mirror(to="v3")'),
            "failover": _services(self.failover),
        }
        for name, value in checks.items():
            object.__setattr__(self, name, value)
        if self.to is not None and self.split:
            raise ConfigError("split", "contradicts to: a call goes to one of them", example='split={"v2": 5, "v1": 95}')
        if self.key is not None:
            if not self.split:
                raise ConfigError("key", "is of no use without split", example='split={"v2": 5, "v1": 95}')
            self.key_of()

    def key_of(self) -> Key | None:
        """The key as a function."""
        return named(self.key, "key") if isinstance(self.key, str) else self.key and checked(self.key, "Rule")

    def places(self) -> Iterable[tuple[str, Place]]:
        """All places it names, each with the path of its field."""
        if self.to is not None:
            yield "to", self.to
        yield from ((f"split.{place}", place) for place, _ in self.split)  # type: ignore[misc, str-unpack]
        if self.mirror is not None and self.mirror.to is not None:
            yield "mirror.to", self.mirror.to


@dataclass(frozen=True, init=False)
class route(Policy):  # noqa: N801 - as users write it
    """Rules for where calls go, the first that matches wins; calls that none matches go anywhere. ``subsets`` gives names to
    subsets, for rules to use::

        route(
            Rule(when=Match(headers={"x-canary": "1"}), to="v2"),
            Rule(split={"v2": 5, "v1": 95}, key=header("x-user-id")),
            subsets={"v1": Subset(version="^1"), "v2": Subset(version="^2", instances=1)},
        )

    Rules, and what is in them, may be given as mappings, as documents have them. Raises :class:`ConfigError` with the path of
    the field.
    """

    kind: ClassVar[str] = "route"

    rules: tuple[Rule, ...]
    subsets: tuple[tuple[str, Subset], ...]

    def __init__(
        self, *rules: Rule | Mapping[str, Any], subsets: Mapping[str, Subset | Mapping[str, Any]] | None = None
    ) -> None:
        if len(rules) > MOST_RULES:
            raise ConfigError("route.rules", f"are {len(rules)}; up to {MOST_RULES} are allowed", example="patterns in a list")
        example = 'Rule(to=Subset(version="^2"))'
        known = {name: built(Subset, one, f"route.subsets.{name}", example=_EXAMPLE) for name, one in (subsets or {}).items()}
        found = tuple(built(Rule, rule, f"route.rules[{at}]", example=example) for at, rule in enumerate(rules))
        object.__setattr__(self, "rules", found)
        object.__setattr__(self, "subsets", tuple(sorted(known.items())))
        places = ((f"route.rules[{at}].{where}", place) for at, rule in enumerate(found) for where, place in rule.places())
        for where, place in places:
            if isinstance(place, str) and place not in known:
                names = ", ".join(known) or "there are none"
                raise ConfigError(where, f"{place!r:.40} is no name of subsets: {names}", example=_EXAMPLE)

    def options(self) -> dict[str, Any]:
        """See :meth:`Policy.options`."""
        return {"rules": self.rules, "subsets": dict(self.subsets)}

    def bind(self, site: Site) -> Layer:
        from meshlib.policies.routing import Routing  # noqa: PLC0415 - the rules are facts: the layer is elsewhere

        return Routing(self, site)

    def subset(self, place: Place | None) -> Subset | None:
        """The subset that ``place`` names."""
        return dict(self.subsets)[place] if isinstance(place, str) else place


def _place(value: Any, where: str) -> Place | None:
    if value is None or isinstance(value, str):
        return value
    return built(Subset, value, where, example=_EXAMPLE)


def _shares(given: Any) -> tuple[tuple[Place, float], ...]:
    """Sorted by name: the order of a mapping may change on its way, and keys must not move then."""
    try:
        pairs = list(dict(given).items())
    except (TypeError, ValueError):
        raise ConfigError("split", f"{given!r:.60} is no mapping of subsets to shares", example='{"v2": 5, "v1": 95}') from None
    for place, share in pairs:
        if not isinstance(place, (str, Subset)):
            raise ConfigError("split", f"{place!r:.40} is no subset", example=_EXAMPLE)
        number(f"split.{place}", share, low=0, high=1e6, example='{"v2": 5, "v1": 95}')
    total = sum(share for _, share in pairs)
    if pairs and not (len(pairs) <= MOST_SHARES and total):
        allowed = f"up to {MOST_SHARES} are allowed, of together more than 0"
        raise ConfigError("split", f"has {len(pairs)} shares of together {total:g}; {allowed}", example='{"v2": 5, "v1": 95}')
    return tuple(sorted(pairs, key=lambda pair: str(pair[0])))


def _services(given: Any) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    for at, name in enumerate(found):
        _service(name, f"failover[{at}]")
    return found


def _service(name: Any, where: str) -> None:
    if not isinstance(name, str):
        raise ConfigError(where, f"{name!r:.40} is no name of a service", example='"orders-backup"')
    with located(where):
        ServiceUrl.parse(name)
