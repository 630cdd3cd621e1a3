"""How everything is measured: rounds of A and B in turn, so that a noisy machine troubles both alike; medians."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One measured case. ``ratio`` is to the case it is compared with, ``bar`` what must not be exceeded (of the ratio
    where there is one, else of the median)."""

    case: str
    median: float
    unit: str
    ratio: float | None = None
    bar: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the bar is kept; None without a bar."""
        if self.bar is None:
            return None
        return (self.median if self.ratio is None else self.ratio) <= self.bar

    def plain(self) -> dict[str, Any]:
        """As printed with ``--json``."""
        return {**asdict(self), "holds": self.holds}


def interleaved(cases: Mapping[str, Callable[..., object]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """CPU seconds per call of each case, ``rounds`` times ``calls`` calls, the cases in turn in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(calls // 4 + 1):
            case()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, case in cases.items():
                start = time.process_time()
                for _ in range(calls):
                    case()
                seconds[name].append((time.process_time() - start) / calls)
    finally:
        gc.enable()
    return seconds


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the round-by-round ratios."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
