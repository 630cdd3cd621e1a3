"""Pickers around another picker: they narrow what it chooses from, or think twice about what it chose."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers.base import Choose, Picker
from meshlib.balance.pickers.plain import weighted
from meshlib.balance.tiers import Pool
from meshlib.errors import ConfigError
from meshlib.flow import Call

ORDER: Final = "mesh-order"
"""Label with which an instance is published to be used only when those of a lower number are not there; default 0."""


class Around:
    """A picker that has another choose. What that one wants to know of calls, it is told."""

    def __init__(self, inner: Picker) -> None:
        if not callable(inner):
            raise ConfigError(f"{type(self).__name__}(inner=)", f"{inner!r:.40} is not a picker", example="inner=PeakEwma()")
        self.inner = inner
        observe = getattr(inner, "observe", None)
        if observe is not None:
            self.observe = observe


class Zone(Around):
    """Instances of this process's own zone (``MESH_ZONE``), as long as they can carry it; without a zone, or with nobody in
    it, anyone.

    Calls spill over to other zones for two reasons. *Health*: when the share of healthy instances in the zone, times
    ``headroom``, is less than one, the rest goes elsewhere at once instead of breaking down those that are left. *Load*:
    when the one chosen here has over twice as many attempts in flight as one elsewhere, and ``busy`` more.
    """

    def __init__(self, inner: Picker, *, headroom: float = 1.4, busy: int = 8) -> None:
        super().__init__(inner)
        if not (headroom >= 1 and busy >= 0):
            raise ConfigError(
                "Zone", f"headroom={headroom!r:.20}, busy={busy!r:.20} make no sense", example="headroom=1.4, busy=8"
            )
        self._headroom, self._busy = headroom, busy

    def __call__(self, pool: Pool) -> Choose:
        zone = pool.here.zone
        here = pool.part(("zone", zone), lambda one: one.instance.zone == zone) if zone else None
        there = pool.part(("not zone", zone), lambda one: one.instance.zone != zone)
        if here is None or there is None:
            return self.inner(pool)
        near, far, busy, uniform = self.inner(here), self.inner(there), self._busy, random.random
        kept = self._headroom * len(here.endpoints) / max(1, len(here.members))

        def choose(call: Call) -> Endpoint:
            if kept < 1.0 and uniform() >= kept:
                return far(call)
            one = near(call)
            if len(one.in_flight) <= busy:
                return one
            other = far(call)
            return other if len(one.in_flight) > busy + 2 * len(other.in_flight) else one

        return choose


class SlowStart(Around):
    """An instance that joined a running fleet gets its share little by little, over ``seconds``: its caches are cold, its
    code is not compiled, its pools are empty. Not for pickers that hash: it would move their keys twice."""

    def __init__(self, inner: Picker, *, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(inner)
        if not 0 < seconds < 86_400:
            raise ConfigError("SlowStart(seconds=)", f"{seconds!r:.20} is not within a day", example="seconds=30.0")
        self._seconds, self._clock = seconds, clock

    def __call__(self, pool: Pool) -> Choose:
        now, choose, clock, seconds, uniform = self._clock(), self.inner(pool), self._clock, self._seconds, random.random
        warm = pool.part("warm", lambda one: one.joined == 0.0 or one.joined + seconds <= now)
        if warm is None or len(warm.endpoints) == len(pool.endpoints):
            return choose
        cold = set(pool.endpoints).difference(warm.endpoints)
        settled = self.inner(warm)

        def gently(call: Call) -> Endpoint:
            endpoint = choose(call)
            if endpoint in cold:
                share = (clock() - endpoint.joined) / seconds
                if share >= 1.0:
                    cold.discard(endpoint)
                elif uniform() >= share:
                    return settled(call)
            return endpoint

        return gently


class RegistryPicks(Around):
    """What the registry says, and nothing that calls find out: instances of the lowest order that are there
    (label ``mesh-order``, a whole number), each as often as its weight says. Who writes orders and weights decides."""

    def __init__(self, inner: Picker = weighted) -> None:
        super().__init__(inner)

    def __call__(self, pool: Pool) -> Choose:
        first = min(map(order, pool.endpoints))
        part = pool.part(("order", first), lambda one: order(one) == first)
        assert part is not None  # one of them has the lowest
        return self.inner(part)


def order(endpoint: Endpoint) -> int:
    """The published order; what is no number of up to nine digits counts as none."""
    text = endpoint.instance.labels.get(ORDER, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
