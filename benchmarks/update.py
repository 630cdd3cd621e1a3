"""One instance of many changes: what the control plane's thread works for it, step by step. CPU time, the sizes in turn."""

from __future__ import annotations

import gc
import statistics
import time

import msgspec

from benchmarks.measure import Row
from benchmarks.memory import ORDERS, Held, entry, instance
from meshlib.backends.base import Listing
from meshlib.discovery.merge import merge

ROUNDS = 15
UPDATE_MS = {1000: 2.0, 10_000: 20.0}
"""Bars by the number of instances."""


def rows() -> list[Row]:
    """Reading Consul's answer, merging it with what is known, updating the fleet and preparing its picker."""
    measured: dict[tuple[int, str], list[float]] = {}
    known = {count: (Held(), [entry(instance(number)) for number in range(count)]) for count in (100, *UPDATE_MS)}
    for held, lines in known.values():
        held.take(msgspec.json.encode(lines))
    for number in range(ROUNDS):
        for count, (held, lines) in known.items():
            lines[7] = entry(instance(7), count + 200 + number)
            lines[7]["Service"]["Meta"]["mesh-generation"] = f"{number}"
            for step, seconds in _steps(held, msgspec.json.encode(lines)).items():
                measured.setdefault((count, step), []).append(seconds)
    return [Row(f"{count} instances: {step}", statistics.median(seconds) * 1e3, "ms CPU", None,
                UPDATE_MS.get(count) if step == "Fleet.update" else None)
            for (count, step), seconds in sorted(measured.items())]  # fmt: skip


def _steps(held: Held, body: bytes) -> dict[str, float]:
    gc.collect()
    times = [time.process_time()]
    listing = Listing(held.reader.read(body), "8")
    times.append(time.process_time())
    known = merge(held.view.known, listing, ORDERS, now=0.0, clock=0.0, hard_age=3600.0)
    times.append(time.process_time())
    held.view.fleet.update(known.snapshot)
    times.append(time.process_time())
    held.view.known = known
    steps = ("reading the answer", "merge", "Fleet.update")
    return {step: end - start for step, start, end in zip(steps, times, times[1:], strict=False)}
