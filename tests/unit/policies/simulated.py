"""A server with so many workers and a queue, in virtual time, and callers who come by chance."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Any

from meshlib.policies.limiter import Limiter, Permit
from meshlib.testing import FakeClock


class Ok:
    status_code = 200


@dataclass
class Phase:
    """What a phase came to: answers a second, latencies in seconds, and the limit at its end."""

    goodput: float
    median: float
    worst: float
    refused: int
    limit: float


class Server:
    """Requests are served in the order of coming, each in about ``service`` seconds."""

    def __init__(self, policy: Any, seed: int = 1) -> None:
        self.clock, self.chance = FakeClock(), random.Random(seed)
        self.limiter: Limiter = policy.limiter(_Site(self.clock))
        self._ends: list[tuple[float, int, Permit]] = []
        self._number = 0

    def load(self, rate: float, workers: int, *, seconds: float, service: float = 0.01) -> Phase:
        """``rate`` requests a second for so long. Only the second half is looked at."""
        free = [self.clock.now] * workers
        start = self.clock.now
        latencies, refused, at = list[float](), 0, start
        while at < start + seconds:
            at += self.chance.expovariate(rate)
            done = self._finish(at)
            counts = at > start + seconds / 2
            latencies += done if counts else []
            permit = self.limiter.take(0.0)
            if permit is None:
                refused += counts
                continue
            end = max(heapq.heappop(free), at) + service * self.chance.uniform(0.8, 1.2)
            heapq.heappush(free, end)
            self._number += 1
            heapq.heappush(self._ends, (end, self._number, permit))
        latencies.sort()
        return Phase(len(latencies) / (seconds / 2), latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100],
                     refused, self.limiter.gradient.limit)  # fmt: skip

    def _finish(self, until: float) -> list[float]:
        latencies = []
        while self._ends and self._ends[0][0] <= until:
            self.clock.now, _, permit = heapq.heappop(self._ends)
            permit()
            self.limiter.answered(permit, Ok)
            latencies.append(self.clock.now - permit.begun)
        self.clock.now = until
        return latencies


class _Site:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
