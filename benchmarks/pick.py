"""One pick of each picker, at 10, 1 000 and 10 000 instances; and what a ring takes to build and to keep.

The bars are for calls of 256 keys, again and again. A ring of which every pick reads another part has its own rows: there a
pick waits for memory, and for whoever else uses the cache.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

from benchmarks.measure import Row, interleaved, ratio
from meshlib.balance.fleet import Fleet
from meshlib.balance.pickers import (
    ConsistentHash,
    ModHash,
    PeakEwma,
    Picker,
    Sticky,
    Subset,
    header,
    least_request,
    path,
    round_robin,
    weighted,
)
from meshlib.balance.pickers.ring import Ring
from meshlib.balance.tiers import Here, Pool
from meshlib.flow import Call
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.outcome import Outcome

ROUNDS, CALLS, KEYS, SIZES = 15, 2048, 256, (10, 1000, 10_000)
ORDERS = ServiceUrl("orders")
USER = header("x-user-id")
PICKERS: dict[str, Picker] = {
    "round_robin": round_robin,
    "least_request": least_request,
    "peak_ewma": PeakEwma(),
    "weighted": weighted,
    "mod_hash by the path": ModHash(path()),
    "consistent_hash by the path": ConsistentHash(path()),
    "consistent_hash by the last of 5 headers": ConsistentHash(USER),
    "subset of 100": Subset(),
    "sticky by the last of 5 headers": Sticky(USER),
}
BARS_NS = {
    "round_robin": 100.0,
    "least_request": 300.0,
    "peak_ewma": 300.0,
    "weighted": 500.0,
    "consistent_hash by the path": 800.0,
    "consistent_hash by the last of 5 headers": 800.0,
}
GROWTH_BARS = {
    "round_robin": 1.5,
    "peak_ewma": 1.5,
    "weighted": 2.5,
    "consistent_hash by the path": 2.0,
    "consistent_hash by the last of 5 headers": 2.0,
}
RING_MB, RING_SECONDS, POINTS = 40.0, 0.5, 160
USUAL = [(b"Host", b"orders"), (b"Accept", b"*/*"), (b"Accept-Encoding", b"gzip"), (b"User-Agent", b"python-httpx2")]


def names(size: int) -> list[str]:
    """Ids as they are by default."""
    return [f"orders-10.0.{number >> 8}.{number & 255}-8080" for number in range(size)]


def pool_of(size: int) -> Pool:
    """As many instances, of weights 1 to 3, each called once."""
    listed = (
        Instance("orders", name, f"10.0.{number >> 8}.{number & 255}", 8080, weight=1 + number % 3)
        for number, name in enumerate(names(size))
    )
    fleet = Fleet(ORDERS)
    fleet.update(Snapshot(ORDERS, tuple(listed)))
    for endpoint in fleet.tiers.prime:
        PeakEwma().observe(endpoint, 0.01, Outcome.ANSWERED, 1.0)
    return Pool(fleet.tiers.prime, fleet.tiers.members, fleet.tiers.memo, Here("", "shop@web-1:8080"))


def calls(keys: int) -> list[Call]:
    """:data:`CALLS` calls of so many keys, which stand in path and header."""
    made = [Call(ORDERS, "GET", b"/orders/%d" % key, [*USUAL, (b"X-User-Id", b"user-%06d" % key)]) for key in range(keys)]
    return made * (CALLS // keys)


def rows() -> list[Row]:
    """Idle picks by size, a ring whose parts are cold, one under load, the ring itself."""
    return [*_idle(), *_cold(), *_loaded(), *ring_rows()]


def _each(picker: Picker, pool: Pool, sent: list[Call]) -> Callable[[], None]:
    choose = picker(pool)

    def run() -> None:
        for call in sent:
            choose(call)

    return run


def _idle() -> Iterator[Row]:
    pools, sent = {size: pool_of(size) for size in SIZES}, calls(KEYS)
    for name, picker in PICKERS.items():
        cases: dict[str, Callable[[], object]] = {str(size): _each(picker, pool, sent) for size, pool in pools.items()}
        few, many, most = interleaved(cases, rounds=ROUNDS, calls=1).values()
        yield Row(f"{name}, of 10", _ns(few), "ns CPU")
        yield Row(f"{name}, of 1000", _ns(many), "ns CPU", None, BARS_NS.get(name))
        yield Row(f"{name}, of 10000, to 10", _ns(most), "ns CPU", ratio(most, few), GROWTH_BARS.get(name))


def _cold() -> Iterator[Row]:
    """As many keys as calls."""
    picker, sent = ConsistentHash(path()), calls(CALLS)
    cases: dict[str, Callable[[], object]] = {str(size): _each(picker, pool_of(size), sent) for size in SIZES}
    for size, seconds in interleaved(cases, rounds=ROUNDS, calls=1).items():
        yield Row(f"consistent_hash by the path, {CALLS} keys, of {size}", _ns(seconds), "ns CPU")


def _loaded() -> Iterator[Row]:
    """With four attempts in flight per instance, so that the bound has something to do."""
    pool, sent = pool_of(1000), calls(KEYS)
    choose = ConsistentHash(path())(pool)
    for number in range(4000):
        choose(sent[number % CALLS]).in_flight.add(number)  # most of them beside the one they belong to
    cases: dict[str, Callable[[], object]] = {
        str(load): _each(ConsistentHash(path(), load=load), pool, sent) for load in (None, 1.25)
    }
    free, bound = interleaved(cases, rounds=ROUNDS, calls=1).values()
    yield Row("consistent_hash, of 1000 with 4000 in flight, no bound", _ns(free), "ns CPU")
    yield Row("consistent_hash, of 1000 with 4000 in flight, load 1.25", _ns(bound), "ns CPU", ratio(bound, free))


def _ns(seconds: list[float]) -> float:
    return statistics.median(seconds) / CALLS * 1e9


def ring_rows(size: int = 10_000) -> Iterator[Row]:
    """Bytes that a ring of ``size`` instances keeps, and takes at most while it is built; CPU seconds to build it."""
    ids, counts = names(size), [POINTS] * size
    seconds = []
    for _ in range(5):
        start = time.process_time()
        Ring(ids, counts, POINTS)
        seconds.append(time.process_time() - start)
    gc.collect()
    tracemalloc.start()
    ring = Ring(ids, counts, POINTS)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ring.points) == size * POINTS + 1
    what = f"ring of {size} instances, {POINTS} points each"
    yield Row(f"{what}: kept", kept / 1e6, "MB", None, RING_MB)
    yield Row(f"{what}: at most, while it is built", peak / 1e6, "MB", None, RING_MB)
    yield Row(f"{what}: to build", statistics.median(seconds), "s CPU", None, RING_SECONDS)
