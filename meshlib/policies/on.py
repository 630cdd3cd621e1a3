"""Policies for some calls only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from meshlib.errors import ConfigError
from meshlib.flow import Call, Flow, Layer, Next, compose
from meshlib.policies.base import Policy, Site, checked
from meshlib.policies.match import Match, Test


@dataclass(frozen=True, init=False)
class on(Policy):  # noqa: N801 - as users write it
    """``policies`` for the calls that ``match``: ``on(Match(method="POST", path="/orders/*"), rate_limit("10/s"))``.

    Several may stand side by side; a call passes all that match it, each of which counts for itself. A provider sorts what is
    in them into its ORDER; elsewhere they stand as they are written, outermost first. Raises :class:`ConfigError`.
    """

    kind: ClassVar[str] = "on"

    match: Match
    policies: tuple[Policy, ...]

    def __init__(self, match: Match, *policies: Policy) -> None:
        if not isinstance(match, Match):
            raise ConfigError("on(match=)", f"{match!r:.60} is no Match", example='on(Match(path="/orders/*"), bulkhead(5))')
        if not policies:
            raise ConfigError("on()", "has no policies", example='on(Match(path="/orders/*"), bulkhead(5))')
        if any(isinstance(each, on) for each in policies):
            raise ConfigError("on()", "holds another on()", example="on(Match(…), bulkhead(5)) beside it")
        object.__setattr__(self, "match", match)
        object.__setattr__(self, "policies", checked(policies, "on()"))

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        test, there = self.match.bind(site.caller), at(site, self.match)
        layers = [policy.bind(there) for policy in self.policies]

        def layer(call: Call, proceed: Next) -> Flow:
            return (compose(layers, proceed) if test(call) else proceed)(call)

        return layer


def at(site: Site, match: Match) -> Site:
    """``site`` for those of its calls that ``match``, by a name that tells them from the others."""
    return replace(site, method=f"{site.method} {match}".strip())


class Only:
    """A layer for the calls that pass ``test``."""

    __slots__ = ("layer", "test")

    def __init__(self, test: Test, layer: Layer) -> None:
        self.test, self.layer = test, layer

    def __call__(self, call: Call, proceed: Next) -> Flow:
        return self.layer(call, proceed) if self.test(call) else proceed(call)
