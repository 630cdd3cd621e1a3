"""What would become of a call: by which rules, to which instances, and why not to others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from meshlib.balance.explain import Candidate, candidates, known, listing
from meshlib.balance.fleet import Fleet
from meshlib.client.stack import Stack
from meshlib.flow import Call
from meshlib.model import ServiceUrl, Snapshot
from meshlib.policies.base import Policy
from meshlib.policies.overlay import Origin
from meshlib.policies.routing import Routed
from meshlib.policies.shadow import Shadowed
from meshlib.subsets import Subset


@dataclass(frozen=True)
class Destination:
    """A ``subset`` (None: any instance) that the call goes to with the chance ``share`` (1: always), and every instance with
    why it may be chosen of it or not."""

    subset: Subset | None
    share: float
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        share = f" (chance {self.share:.3%})" if self.share < 1.0 else ""
        return f"to {self.subset or 'any instance'}{share}:\n{listing(self.candidates)}"


@dataclass(frozen=True)
class Way:
    """The call through one client: ``method`` is the declared one (``"Orders.fetch"``, empty for clients without), ``policies``
    are those in force there, in THE ORDER, and ``said`` what those that have something to say would do with it. ``origin`` says
    which document has to do with them, and which fields of them it set; None without a document."""

    method: str
    policies: tuple[Policy, ...] = ()
    said: tuple[str, ...] = ()
    destinations: tuple[Destination, ...] = ()
    origin: Origin | None = None

    def __str__(self) -> str:
        policies = ", ".join(map(str, map(_named, self.policies))) or "no policies"
        told = [f"  {each}" for each in (self.origin, *self.said) if each is not None]
        return "\n".join([f"{self.method or 'a client'}: {policies}", *told])


def _named(policy: Policy) -> str:
    return f"{policy.kind} (shadow)" if isinstance(policy, Shadowed) else policy.kind


@dataclass(frozen=True)
class Explanation:
    """What would become of ``call`` (its method and path) to ``service`` now. ``snapshot`` is what is known of the service
    (None: nothing), ``age`` the seconds since a registry confirmed it, ``live`` whether it is watched, ``problem`` why not."""

    service: ServiceUrl
    call: str
    snapshot: Snapshot | None
    age: float | None
    live: bool
    problem: str
    ways: tuple[Way, ...] = field(default=())

    def __str__(self) -> str:
        live = "live" if self.live else f"not live{f': {self.problem}' if self.problem else ''}"
        lines = [f"{self.call} at {self.service}: instances {known(self.snapshot)}, {live}"]
        told: tuple[Destination, ...] | None = None
        for way in self.ways:
            lines.append(str(way))
            if way.destinations == told:
                lines.append("  to the same instances")
            else:
                told = way.destinations
                lines += map(str, told)
        return "\n".join(lines)


def ways(fleet: Fleet, call: Call, stacks: Iterable[Stack]) -> tuple[Way, ...]:
    """``call`` through each of ``stacks``; without any, as a client without policies would make it."""
    ordered = sorted(stacks, key=lambda stack: stack.site.method)
    return tuple(_way(fleet, call, stack) for stack in ordered) or (Way("", (), (), _destinations(fleet, call, Routed(""))),)


def _way(fleet: Fleet, call: Call, stack: Stack) -> Way:
    said = stack.explain(call)
    routed = next((each for _, each in said if isinstance(each, Routed)), Routed(""))
    return Way(stack.site.method, stack.effective, tuple(f"{kind}: {each}" for kind, each in said),
               _destinations(fleet, call, routed), stack.origin)  # fmt: skip


def _destinations(fleet: Fleet, call: Call, routed: Routed) -> tuple[Destination, ...]:
    found = []
    for subset, share in routed.shares:
        there = call.__copy__()
        there.subset = subset
        found.append(Destination(subset, share, candidates(fleet, there)))
    return tuple(found)
