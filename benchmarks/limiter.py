"""What a limit costs: asking for admission (its lock and its clock included), beside the library ``limits`` in memory; and
eight threads through a client with and without limits."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.call import answer
from benchmarks.measure import Row, interleaved, ratio
from meshlib import Mesh, Settings, adaptive_concurrency, bulkhead, rate_limit
from meshlib.backends.memory import store
from meshlib.model import Instance
from meshlib.policies.base import Site
from meshlib.policies.bulkhead import Permits

ROUNDS, CALLS = 31, 5000
BAR_NS = 350.0
THREADS, THREAD_CALLS, THREAD_ROUNDS = 8, 200, 15
BAR_THREADS = 1 / 0.95


def rows() -> list[Row]:
    """Admission in ns of CPU; then the time of eight threads, relative to the bare client's in the same rounds."""
    with _peers() as peers, tempfile.TemporaryDirectory() as directory:
        site = Site(state_dir=lambda: Path(directory))
        seconds = interleaved({**_cases(site), **peers}, rounds=ROUNDS, calls=CALLS)
    barred = {"one limit": BAR_NS, "one limit, reached": BAR_NS}
    ours = [
        Row(case, statistics.median(times) * 1e9, "ns", None, barred.get(case)) for case, times in seconds.items()
    ]  # fmt: skip
    return [*ours, *_threads()]


def _cases(site: Site) -> dict[str, Callable[[], object]]:
    def take(*limits: str, key: object = None, **options: Any) -> Callable[[], object]:
        layer: Any = rate_limit(*limits, key=None if key is None else lambda _: key, **options).bind(site)
        if key is None and not options:
            return layer._gate.take  # type: ignore[no-any-return]
        return lambda: layer._gates.take(key)

    permits = Permits(10)

    def in_and_out() -> None:
        place = permits.take()
        assert place is not None
        place()

    limiter = adaptive_concurrency().limiter(site)

    def granted() -> None:
        permit = limiter.take(limiter.lag())
        assert permit is not None
        permit()
        limiter.answered(permit, None)

    return {
        "one limit": take("4096/1ms"),
        "one limit, reached": take("1/h"),
        "one limit in cells": take("1000000/s"),
        "two limits": take("4096/1ms", "1000000000/h"),
        "one limit by key": take("4096/1ms", key=b"shop"),
        "one limit of the host": take("4096/1ms", scope="host"),
        "bulkhead, in and out": in_and_out,
        "adaptive_concurrency, in and out": granted,
    }


@contextmanager
def _peers() -> Iterator[dict[str, Callable[[], object]]]:
    """What the library ``limits`` takes, where it is installed."""
    try:
        from limits import RateLimitItemPerSecond
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter
    except ImportError:
        yield {}
        return
    storage = MemoryStorage()
    limiter, item = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(100)
    yield {"limits, moving window in memory": lambda: limiter.hit(item, "shop")}
    storage.timer.cancel()


def _threads() -> list[Row]:
    shared = store("benchmark-limiter")
    instance = Instance("orders", "orders-1", "10.0.0.1", 8080)
    shared.instances["", "orders", instance.id] = (instance, float("inf"))
    mock = httpx2.MockTransport(answer)
    with Mesh(Settings(registry="memory://benchmark-limiter"), transport=lambda _: mock) as mesh:
        mesh.snapshot("orders")
        policies = [rate_limit("1000000/s"), bulkhead(100)]
        clients = {
            "8 threads: bare httpx2 client": httpx2.Client(transport=mock, base_url="http://orders", trust_env=False),
            "8 threads: mesh.http()": mesh.http("orders"),
            "8 threads: mesh.http() with both": mesh.http("orders", policies=policies),
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(THREAD_ROUNDS + 1):
            for name, client in clients.items():
                spent = _together(client)
                if number:  # the first round warms up
                    times[name].append(spent / (THREADS * THREAD_CALLS) * 1e6)
    bare, *ours = times.items()
    return [
        Row(bare[0], statistics.median(bare[1]), "us"),
        *(Row(name, statistics.median(spent), "us", ratio(spent, bare[1]), BAR_THREADS) for name, spent in ours),
    ]


def _together(client: httpx2.Client) -> float:
    def work() -> None:
        for _ in range(THREAD_CALLS):
            client.get("/orders/7")

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start
