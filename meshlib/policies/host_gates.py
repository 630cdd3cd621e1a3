"""Gates whose windows all processes of a host share."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from pathlib import Path

from meshlib.policies.base import Site
from meshlib.policies.gate import Gate
from meshlib.policies.rates import Rate
from meshlib.policies.shared_window import WAYS, SharedRing, digest, shared_log
from meshlib.policies.window import AllOf


class HostGates:
    """The gates of a limit that all processes of this host keep together: one for each key that somebody in this process
    waits for, for what there is to remember is in the file. That is opened by the first who asks."""

    def __init__(self, rates: tuple[Rate, ...], keys: int, site: Site) -> None:
        self._rates, self._site = rates, site
        self._keys = keys if keys < WAYS else -(-keys // WAYS) * WAYS
        self._gates: weakref.WeakValueDictionary[Hashable, Gate] = weakref.WeakValueDictionary()
        self._only: Gate | None = None  # there is one key: kept, though nobody waits

    def take(self, key: Hashable) -> tuple[Gate, float]:
        """See :meth:`meshlib.policies.gate.Gates.take`."""
        gate = self.find(key)
        return gate, gate.take()

    def find(self, key: Hashable) -> Gate:
        """The gate of ``key``."""
        gate = self._only or self._gates.get(key)
        if gate is None:
            gate = self._gates.setdefault(key, self._gate(key))
            if self._keys == 1:
                self._only = gate
        return gate

    def _gate(self, key: Hashable) -> Gate:
        log = shared_log(self._path(), self._rates, self._keys, self._site.clock)
        rings = [SharedRing(log, place, digest(key)) for place in range(len(self._rates))]
        return Gate(rings[0] if len(rings) == 1 else AllOf(rings), self._site.clock, lambda: log)

    def _path(self) -> Path:
        site = self._site
        name = digest(f"{site.service} {site.method} {', '.join(map(str, self._rates))} {self._keys}")
        return site.state_dir() / "limits" / f"{name:016x}.limit"

    def forked(self) -> None:
        """In a child process."""
        for gate in list(self._gates.values()):
            gate.forked()
