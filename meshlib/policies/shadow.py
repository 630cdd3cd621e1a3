"""A policy that is tried out: it counts what it would have refused, and refuses nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, ClassVar, Final

from meshlib.errors import ConfigError, Refused
from meshlib.events import Events
from meshlib.flow import Call, Flow, Layer, Next
from meshlib.policies.base import Policy, Site

MARK: Final = " (shadow)"
"""Behind the name of a method: what a shadow counts with others of the host or cluster is not counted with what is enforced."""


class _Quiet(Events):
    """What the policy says of calls that it does not really refuse is not said."""

    def emit(self, kind: str, service: str = "", method: str = "", **detail: Any) -> None:
        """See :meth:`Events.emit`."""


@dataclass(frozen=True)
class Shadowed(Policy):
    """``policy`` as an observer, above the one of its kind that is in force, so that it sees the calls as that one does.
    Events ``shadow.refused`` say what it would have done (``policy``, ``why``, ``retry_after``). It never makes a call wait:
    what would have waited counts as refused."""

    policy: Policy
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.policy.kind)  # its place in THE ORDER

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        aside = replace(site, method=site.method + MARK, events=_Quiet())
        return _Shadow(self.policy, self.policy.bind(aside), site)


def shadowed(policy: Policy) -> Shadowed:
    """``policy`` as an observer, which does not wait."""
    return Shadowed(policy.of({"wait": 0.0}, policy.kind, policy) if "wait" in signature(type(policy)).parameters else policy)


class _Shadow:
    """The layer."""

    def __init__(self, policy: Policy, layer: Layer, site: Site) -> None:
        self._policy, self._layer, self._site = policy, layer, site

    def __call__(self, call: Call, proceed: Next) -> Flow:
        passed = False

        def pass_on(through: Call) -> Flow:
            nonlocal passed
            passed = True
            return proceed(through)

        try:
            return (yield from self._layer(call, pass_on))
        except (Refused, ConfigError) as refused:
            if passed:  # it is of what is below
                raise
            why, after = str(refused), getattr(refused, "retry_after", None)
        self._site.emit("shadow.refused", policy=self._policy.kind, why=why, retry_after=after)
        return (yield from proceed(call))
