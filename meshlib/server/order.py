"""THE ORDER of a provider's layers, outermost first. A stack holds those of them that its provider uses; access_log, ip_list,
authenticate and authorise have their places here, and are not built yet.

observe                sees every request, and what became of it (``metrics/server.py``: not a layer, for all are counted)
access_log             the same, for one line each
ip_list                the cheapest refusal of strangers
authenticate           from here on the caller is who it says
authorise              nothing is counted for who may not
timeout                one budget for waiting and for what the app calls
rate_limit             before a place is taken: whoever is over the limit holds nothing
bulkhead               how many at once
adaptive_concurrency   the same, by what latency says
shed                   the same, by priority and by how much time is left
circuit_breaker        below the limits: it sees only what the app did
inject_fault           to be taken for the app's
deadline               what waited above may be too late by now
app
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from meshlib.errors import ConfigError
from meshlib.flow import Call, Layer, Next, compose
from meshlib.model import ServiceUrl
from meshlib.policies.base import Policy, Site, checked
from meshlib.policies.match import Match
from meshlib.policies.on import Only, at, on
from meshlib.policies.overlay import Origin

ORDER: Final = (
    "observe", "access_log", "ip_list", "authenticate", "authorise", "timeout", "rate_limit", "bulkhead",
    "adaptive_concurrency", "shed", "circuit_breaker", "inject_fault",
)  # fmt: skip
CONSUMERS: Final = frozenset({"cache", "fallback", "hedge", "retry", "route"})
"""What needs another answer than the app's, or a second one. A request is served once."""

UNNAMED: Final = ServiceUrl("")
"""A provider that registers nowhere."""

Fields: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Part:
    """One policy, for the requests that match (None: all)."""

    match: Match | None
    policy: Policy


class ProviderStack:
    """The layers of one provider: ``proceed`` is swapped whole when the rules change, and None when there is no layer.

    A policy that stays the same keeps its layer, and so its state; a changed one begins anew.
    """

    def __init__(self, site: Site, policies: Iterable[Policy] = (), *, service: ServiceUrl = UNNAMED) -> None:
        self.site, self.policies, self.service = site, suitable(policies), service
        self.effective: tuple[Policy, ...] = ()
        self.proceed: Next | None = None
        self._tells: list[Layer] = []
        self._bound: dict[_Part, Layer] = {}
        self.origin: Origin | None = None
        """What a document has to do with :attr:`effective`, None where there is none."""
        self.overlay(())

    def overlay(self, rules: Iterable[Policy]) -> None:
        """Put ``rules`` over the policies of the code: each in place of that of the same kind, an ``on`` in place of that with
        the same match. Raises :class:`ConfigError`, and then changes nothing."""
        self.prepare(_overlaid(self.policies, suitable(rules)))()

    def prepare(self, policies: Iterable[Policy], origin: Origin | None = None) -> Callable[[], None]:
        """Build the layers of ``policies``, and change nothing: what is returned, called, puts them in force and cannot fail.
        Raises :class:`ConfigError`, or whatever binding does."""
        effective = suitable(policies)
        bound = {part: self._bound.get(part) or self._bind(part) for part in in_order(effective)}
        tells = [each for each in bound.values() if hasattr(_inner(each), "fields")]
        proceed = compose(bound.values()) if bound else None

        def commit() -> None:
            self.effective, self._bound, self._tells, self.origin = effective, bound, tells, origin
            self.proceed = proceed

        return commit

    def _bind(self, part: _Part) -> Layer:
        if part.match is None:
            return part.policy.bind(self.site)
        return Only(part.match.bind(), part.policy.bind(at(self.site, part.match)))

    def fields(self, call: Call) -> Fields:
        """What the answer to ``call`` says of the limits: ``RateLimit`` and ``RateLimit-Policy``, each of all that count it."""
        found: dict[str, str] = {}
        for layer in self._tells:
            if not isinstance(layer, Only) or layer.test(call):
                for name, value in _inner(layer).fields(call).items():
                    found[name] = f"{found[name]}, {value}" if name in found else value
        return list(found.items())

    def explain(self, call: Call) -> list[tuple[str, Any]]:
        """What the layers that have an ``explain(call)`` say of ``call``, each with the kind of its policy: what they would do
        with it now, changing nothing."""
        concerned = [(part, layer) for part, layer in self._bound.items() if not isinstance(layer, Only) or layer.test(call)]
        asked = [(part.policy.kind, getattr(_inner(layer), "explain", None)) for part, layer in concerned]
        return [(kind, explain(call)) for kind, explain in asked if explain is not None]


def suitable(policies: Iterable[Any]) -> tuple[Policy, ...]:
    """``policies`` as a tuple. Raises :class:`ConfigError` for what is none, or cannot stand on a provider."""
    found = checked(policies, "policies")
    for part in _parts(found):
        if part.policy.kind in CONSUMERS:
            raise ConfigError("policies", f"{part.policy.kind} cannot stand on a provider: the app serves a request once",
                              example="mesh.asgi(app, policies=[bulkhead(20)])")  # fmt: skip
    return found


def in_order(policies: Iterable[Policy]) -> list[_Part]:
    """``policies`` as THE ORDER has them, what is for some requests below what is for all; kinds that are not ours stand
    outermost, as they were given."""
    return sorted(_parts(policies), key=lambda part: (_place(part.policy.kind), part.match is not None))


def _place(kind: str) -> int:
    return ORDER.index(kind) if kind in ORDER else -1


def _parts(policies: Iterable[Policy]) -> Iterator[_Part]:
    for policy in policies:
        if isinstance(policy, on):
            yield from (_Part(policy.match, each) for each in policy.policies)
        else:
            yield _Part(None, policy)


def _overlaid(below: Sequence[Policy], above: Sequence[Policy]) -> tuple[Policy, ...]:
    kinds = {_kind(each) for each in above}
    return (*(each for each in below if _kind(each) not in kinds), *above)


def _kind(policy: Policy) -> tuple[str, Match | None]:
    return policy.kind, policy.match if isinstance(policy, on) else None


def _inner(layer: Layer) -> Any:
    return layer.layer if isinstance(layer, Only) else layer


NONE: Final = ProviderStack(Site())
"""No layers: deadlines and priorities only."""
