"""Full governance against the bare client, and against what is stacked by hand today, over the same instant mock transport.

Full: timeout, retry, rate limit, bulkhead, circuit breaker, picking among ten instances, counting. By hand: tenacity,
pybreaker, limits, structlog (one line of JSON per call, to nowhere) and Prometheus around the bare client; no bulkhead, no
picking, and of the strategies of ``limits`` the cheapest, a fixed window (its moving one remembers every call of a second).
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import httpx2

from benchmarks.call import BAR, INSTANCES, answer
from benchmarks.measure import Row, interleaved, ratio
from meshlib import Mesh, Settings, bulkhead, circuit_breaker, get, rate_limit, retry, service_client, timeout
from meshlib.backends.memory import store
from meshlib.flow import Call, compose, run, send
from meshlib.metrics.client import recorder
from meshlib.model import Instance, ServiceUrl
from meshlib.policies.base import Policy, Site
from meshlib.policies.observe import Observe

ROUNDS, CALLS = 41, 200
BAR_BY_HAND = 1 / 6
THREADS, THREAD_CALLS, THREAD_ROUNDS = 8, 200, 31
BAR_THREADS = 1 / 0.95
LIMIT = 1_000_000
BAR_COUNTING = 1.0


def policies() -> list[Policy]:
    """Everything that governs a call."""
    return [timeout(5.0), retry(attempts=3), rate_limit(f"{LIMIT}/s"), bulkhead(100), circuit_breaker()]


@service_client("orders", policies=policies())
class Orders(Protocol):
    """The same call, declared."""

    @get("/orders/{id}")
    def fetch(self, id: int) -> dict[str, int]: ...
    @get("/orders/{id}")
    async def afetch(self, id: int) -> dict[str, int]: ...


def rows() -> list[Row]:
    """Blocking and asyncio in us of CPU, then eight threads in us of time."""
    shared = store("benchmark-govern")
    for number in range(INSTANCES):
        instance = Instance("orders", f"orders-{number}", f"10.0.0.{number + 1}", 8080)
        shared.instances["", "orders", instance.id] = (instance, float("inf"))
    mock = httpx2.MockTransport(answer)
    with Mesh(Settings(registry="memory://benchmark-govern"), transport=lambda _: mock, async_transport=lambda _: mock) as mesh:
        mesh.snapshot("orders")
        by_hand = ByHand()
        try:
            return [*_sync(mesh, mock, by_hand), *_async(mesh, mock, by_hand), *_threads(mesh, mock), _counting()]
        finally:
            by_hand.close()


class ByHand:
    """What a service has around its client today: each library as its manual shows it."""

    def __init__(self) -> None:
        import limits
        import prometheus_client as prometheus
        import pybreaker
        import structlog
        import tenacity

        self._storage = limits.storage.MemoryStorage()
        limiter, limit = limits.strategies.FixedWindowRateLimiter(self._storage), limits.RateLimitItemPerSecond(LIMIT)
        self._admit = lambda: limiter.hit(limit, "orders")
        self._breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=30)
        self._log = structlog.wrap_logger(Nowhere(), processors=[
            structlog.contextvars.merge_contextvars, structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"), structlog.processors.JSONRenderer(),
        ])  # fmt: skip
        registry = prometheus.CollectorRegistry()
        self._calls = prometheus.Counter("calls", "Calls.", ["service", "method", "status"], registry=registry)
        self._seconds = prometheus.Histogram("call_seconds", "Their time.", ["service", "method"], registry=registry)
        self.again = tenacity.retry(
            stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_random_exponential(multiplier=0.05, max=2.0),
            retry=tenacity.retry_if_exception_type(httpx2.TransportError), reraise=True,
        )  # fmt: skip

    def sync(self, client: httpx2.Client) -> Callable[[str], httpx2.Response]:
        """``client.get``, governed."""

        @self.again
        def call(path: str) -> httpx2.Response:
            if not self._admit():
                raise RuntimeError("limited")
            begun = time.perf_counter()
            response: httpx2.Response = self._breaker.call(client.get, path, timeout=5.0)
            self._tell(path, response.status_code, time.perf_counter() - begun)
            return response

        return call

    def awaited(self, client: httpx2.AsyncClient) -> Callable[[str], Awaitable[httpx2.Response]]:
        """The same for asyncio."""

        @self.again
        async def call(path: str) -> httpx2.Response:
            if not self._admit():
                raise RuntimeError("limited")
            begun = time.perf_counter()
            with self._breaker.calling():
                response = await client.get(path, timeout=5.0)
            self._tell(path, response.status_code, time.perf_counter() - begun)
            return response

        return call

    def _tell(self, path: str, status: int, seconds: float) -> None:
        self._calls.labels("orders", "GET", str(status)).inc()
        self._seconds.labels("orders", "GET").observe(seconds)
        self._log.info("call", service="orders", method="GET", path=path, status=status, seconds=round(seconds, 6))

    def close(self) -> None:
        """End the timer of ``limits``."""
        self._storage.timer.cancel()


class Nowhere:
    """Where lines of the log go: writing them would cost as much again."""

    def info(self, line: str) -> None:
        """Drop it."""


def _sync(mesh: Mesh, mock: httpx2.MockTransport, by_hand: ByHand) -> list[Row]:
    bare = httpx2.Client(transport=mock, base_url="http://orders", trust_env=False)
    governed, stacked, orders = mesh.http("orders", policies=policies()), by_hand.sync(bare), mesh.client(Orders)
    cases: dict[str, Callable[[], object]] = {
        "sync: bare httpx2 client": lambda: bare.get("/orders/7"),
        "sync: stacked by hand": lambda: stacked("/orders/7"),
        "sync: mesh.http(), all policies": lambda: governed.get("/orders/7"),
        "sync: @service_client, all policies, decoded": lambda: orders.fetch(7),
    }
    return _rows("sync", interleaved(cases, rounds=ROUNDS, calls=CALLS))


def _async(mesh: Mesh, mock: httpx2.MockTransport, by_hand: ByHand) -> list[Row]:
    with asyncio.Runner() as runner:
        bare = httpx2.AsyncClient(transport=mock, base_url="http://orders", trust_env=False)
        governed, stacked, orders = mesh.ahttp("orders", policies=policies()), by_hand.awaited(bare), mesh.client(Orders)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "async: bare httpx2 client": lambda: bare.get("/orders/7"),
            "async: stacked by hand": lambda: stacked("/orders/7"),
            "async: mesh.ahttp(), all policies": lambda: governed.get("/orders/7"),
            "async: @service_client, all policies, decoded": lambda: orders.afetch(7),
        }

        async def many(call: Callable[[], Awaitable[object]]) -> None:
            for _ in range(CALLS):
                await call()

        cases = {name: (lambda call=call: runner.run(many(call))) for name, call in calls.items()}
        measured = interleaved(cases, rounds=ROUNDS, calls=1)
        return _rows("async", {name: [one / CALLS for one in seconds] for name, seconds in measured.items()})


def _rows(shell: str, measured: dict[str, list[float]]) -> list[Row]:
    bare, stacked, governed, _ = measured.values()
    made = []
    for name, seconds in measured.items():
        compared = None if seconds is bare else ratio(seconds, bare)
        barred = compared is not None and seconds is not stacked
        made.append(Row(name, statistics.median(seconds) * 1e6, "us CPU", compared, BAR if barred else None))
    added = [full - base for full, base in zip(governed, bare, strict=True)]
    by_hand = [full - base for full, base in zip(stacked, bare, strict=True)]
    part = ratio(added, by_hand)
    return [*made, Row(f"{shell}: what is added, to that by hand", statistics.median(added) * 1e6, "us CPU", part, BAR_BY_HAND)]


def _threads(mesh: Mesh, mock: httpx2.MockTransport) -> list[Row]:
    clients = {
        f"{THREADS} threads: bare httpx2 client": httpx2.Client(transport=mock, base_url="http://orders", trust_env=False),
        f"{THREADS} threads: mesh.http(), all policies": mesh.http("orders", policies=policies()),
    }
    times: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(THREAD_ROUNDS + 1):
        for name, client in clients.items():
            spent = together(client)
            if number:  # the first round warms up
                times[name].append(spent / (THREADS * THREAD_CALLS) * 1e6)
    (one, bare), (other, governed) = times.items()
    compared = ratio(governed, bare)
    return [Row(one, statistics.median(bare), "us"), Row(other, statistics.median(governed), "us", compared, BAR_THREADS)]


class Instant:
    """The blocking shell's network: every call is answered at once."""

    def send(self, call: Call) -> httpx2.Response:  # noqa: ARG002
        """See :class:`meshlib.flow.Sender`."""
        return _GOOD

    def hold(self, response: Any, call: Call) -> None:  # noqa: ARG002
        """See :class:`meshlib.flow.Sender`."""
        call.close()

    def drop(self, response: Any) -> None:
        """See :class:`meshlib.flow.Sender`."""


_GOOD = httpx2.Response(200)


def _counting() -> Row:
    sender, target = Instant(), ServiceUrl("orders")
    counted = compose([Observe(Site(service="orders"), recorder())])
    measured = interleaved(
        {name: (lambda flow=flow: run(flow, Call(target, "GET", b"/"), sender)) for name, flow in (("", send), ("+", counted))},
        rounds=ROUNDS, calls=20 * CALLS,
    )  # fmt: skip
    added = [more - less for less, more in zip(*measured.values(), strict=True)]
    return Row("counting a call", statistics.median(added) * 1e6, "us CPU", None, BAR_COUNTING)


def together(client: httpx2.Client) -> float:
    """Seconds that all threads take together."""

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
