"""THE ORDER of a consumer's layers, outermost first. A stack holds those of them that its client uses.

observe                outermost: counts what the caller gets, whoever has decided it
fallback               sees what everything below came to; above the cache, which must not keep what it gives
timeout                one budget for all attempts and pauses, and for waiting until another call has fetched the answer
cache                  above what repeats: one fetch, with all its attempts, for all who want the same
retry                  above balance: another attempt gets another instance; above the limits: every attempt counts, and
                       none is held while it sleeps
hedge                  a second attempt is an attempt like any other, to what is below
rate_limit             before a permit is taken: whoever has to wait for its turn holds nothing
bulkhead               how many at once
adaptive_concurrency   the same, by what latency says
circuit_breaker        below the limits: it sees only what the remote did
route                  which instances may be chosen from
inject_fault           below the breaker, and what goes elsewhere when nobody is reachable: to be taken for the remote's
failover               directly above balance: it never waits, and what it repeats was never sent, or is idempotent
balance                innermost but for what signs: everything above speaks of the service, everything below of one instance
send
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from meshlib.balance.layer import Balance, Source
from meshlib.balance.pickers import Picker
from meshlib.balance.tiers import Here
from meshlib.errors import CallError
from meshlib.flow import Call, Flow, Layer, Next, Wait, compose
from meshlib.policies.base import Policy, Site, overlaid
from meshlib.policies.failover import Failover
from meshlib.policies.observe import Observe
from meshlib.policies.overlay import Origin
from meshlib.policies.passed import blame, explained

ORDER: Final = (
    "fallback", "timeout", "cache", "retry", "hedge", "rate_limit", "bulkhead", "adaptive_concurrency", "circuit_breaker",
    "route", "inject_fault",
)  # fmt: skip


def innermost(source: Source, picker: Picker, here: Here, clock: Callable[[], float] = time.monotonic) -> Next:
    """What every call passes: failover and balance. ``here`` is who calls."""
    return compose([Failover(), Balance(source, picker, here=here, clock=clock)])


class Stack:
    """The layers of one method (or of a client without methods): ``proceed`` is swapped whole when the rules change.

    A policy that stays the same keeps its layer, and so its state; a changed one begins anew.
    """

    def __init__(self, site: Site, policies: Sequence[Policy], below: Next) -> None:
        self.site, self.policies = site, tuple(policies)
        self._below = below
        self.effective: tuple[Policy, ...] = ()
        self.proceed = below
        self._outermost: list[Layer] = [] if site.recorder is None else [Observe(site, site.recorder)]
        self._bound: dict[Policy, Layer] = {}
        self.origin: Origin | None = None
        """What a document has to do with :attr:`effective`, None where there is none."""
        self.overlay(())

    def explain(self, call: Call) -> list[tuple[str, Any]]:
        """What the layers that have an ``explain(call)`` say of ``call``, each with the kind of its policy: what they would do
        with it now, changing nothing."""
        return explained(tuple(self._bound.items()), call)

    def blame(self, error: CallError, call: Call) -> None:
        """``error`` comes out of here: have it say how the layers stand that ``call`` passed."""
        blame(error, self.site, tuple(self._bound.items()), call)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those above failover and balance, outermost first."""
        return tuple(self._bound.values())

    def overlay(self, rules: Iterable[Policy]) -> None:
        """Put ``rules`` over the policies of the code, whole ones in place of those of the same kind."""
        self.prepare(overlaid(self.policies, tuple(rules)))()

    def prepare(self, policies: Iterable[Policy], origin: Origin | None = None) -> Callable[[], None]:
        """Build the layers of ``policies``, and change nothing: what is returned, called, puts them in force and cannot fail.
        So several stacks change together or not at all. Raises whatever binding does."""
        effective = in_order(policies)
        bound = {policy: self._bound.get(policy) or policy.bind(self.site) for policy in effective}
        proceed = self._over(bound)

        def commit() -> None:
            self.effective, self._bound, self.origin, self.proceed = effective, bound, origin, proceed

        return commit

    def hold(self, wait: Callable[[], Wait | None]) -> None:
        """Have calls wait, as long as ``wait`` says so, before they enter the layers: for the first word on what those are to
        be. Ended by :meth:`release`, and by a commit."""

        def held(call: Call) -> Flow:
            pending = wait()
            if pending is not None:
                yield pending
            proceed = self.proceed if self.proceed is not held else self._over(self._bound)
            return (yield from proceed(call))

        self.proceed = held

    def release(self) -> None:
        """Calls need not wait any more."""
        self.proceed = self._over(self._bound)

    def _over(self, bound: Mapping[Policy, Layer]) -> Next:
        return compose([*self._outermost, *bound.values()], self._below)


def in_order(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """``policies`` as THE ORDER has them; kinds that are not ours stand outermost, as they were given."""
    return tuple(sorted(policies, key=lambda policy: ORDER.index(policy.kind) if policy.kind in ORDER else -1))
