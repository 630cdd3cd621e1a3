"""Who may be picked: endpoints in the order of trust, and what a picker is given of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from meshlib.balance.endpoint import Endpoint, Reason
from meshlib.model import Status


@dataclass(frozen=True, slots=True, eq=False)
class Tiers:
    """Endpoints in the order of trust; a lower tier is used only when the ones above it have nobody left.

    ``prime`` are up and healthy. ``reserve`` are suspects (unlisted, unconfirmed), draining ones and those of weight 0:
    they probably answer. ``outliers`` answer, but badly. ``ejected`` failed to answer at all a moment ago: better than
    nothing. Instances in maintenance are in none. ``members`` are all of them in order of their ids; ``memo`` is where
    pickers keep what they have made of the members, for as long as these stay the same.
    """

    prime: tuple[Endpoint, ...] = ()
    reserve: tuple[Endpoint, ...] = ()
    outliers: tuple[Endpoint, ...] = ()
    ejected: tuple[Endpoint, ...] = ()
    members: tuple[Endpoint, ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def usable(self) -> tuple[Endpoint, ...]:
        """The highest tier that has anybody."""
        return self.prime or self.reserve or self.outliers or self.ejected

    @property
    def expected(self) -> int:
        """How many want traffic, healthy or not."""
        return len(self.prime) + len(self.outliers) + len(self.ejected)


def sort(
    endpoints: Iterable[Endpoint], suspects: frozenset[str], *, panic: float = 0.0, memo: dict[Any, Any] | None = None
) -> Tiers:
    """Put each endpoint into its tier. When less than the share ``panic`` of those that want traffic is prime, the rest
    would break down under the load: outliers, which do answer, share it then."""
    prime: list[Endpoint] = []
    reserve: list[Endpoint] = []
    outliers: list[Endpoint] = []
    ejected: list[Endpoint] = []
    members: list[Endpoint] = []
    up, maintenance = Status.UP, Status.MAINTENANCE
    for endpoint in endpoints:
        instance = endpoint.instance
        status = instance.status
        if status is maintenance:
            continue
        members.append(endpoint)
        if endpoint.ejected is not None:
            (outliers if endpoint.ejected.reason is Reason.OUTLIER else ejected).append(endpoint)
        elif status is not up or instance.id in suspects or not instance.weight:
            reserve.append(endpoint)
        else:
            prime.append(endpoint)
    if outliers and len(prime) < panic * (len(prime) + len(outliers) + len(ejected)):
        prime, outliers = prime + outliers, []
    return Tiers(tuple(prime), tuple(reserve), tuple(outliers), tuple(ejected), tuple(members), {} if memo is None else memo)


@dataclass(frozen=True, slots=True)
class Here:
    """Who picks: the ``zone`` of this process, and a name for this ``consumer`` that stays the same when it restarts."""

    zone: str = ""
    consumer: str = ""


NOWHERE = Here()


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What a picker chooses from: ``endpoints`` (never empty). ``members`` are all that are listed, those out of rotation
    included: what is to stay the same while health comes and goes is made of them, and kept in ``memo``."""

    endpoints: tuple[Endpoint, ...]
    members: tuple[Endpoint, ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict)
    here: Here = NOWHERE

    def part(self, name: object, belongs: Callable[[Endpoint], bool]) -> Pool | None:
        """Those that belong to the part ``name``, with a memo of its own; None when there are none."""
        endpoints = tuple(filter(belongs, self.endpoints))
        if not endpoints:
            return None
        members = tuple(filter(belongs, self.members))
        known, memo = self.memo.get(name, ((), {}))
        if known != members:  # what belongs to it may depend on more than the members: on time, say
            memo = {}
            self.memo[name] = (members, memo)
        return replace(self, endpoints=endpoints, members=members, memo=memo)
