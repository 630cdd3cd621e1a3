"""A consumer of "orders" for the fault tests, as a process of its own:

    python -m tests.faults.consumer [--kind sync|async|cacheless] [--rate 100] [--tasks 4] [--delay ms] [--post] [--picker NAME]
                                    [--without suspects|ejection|failover|identity …]

It calls at ``rate`` per second in all and answers each line ``report`` on standard input with one line of JSON: what it has
seen so far. A call may take as long as MESH_TIMEOUT says. Times are of the monotonic clock, which all processes of a machine
share. ``--without`` takes a defence away, for the negative controls; the ``cacheless`` kind has none: it asks the registry
before each call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2

from meshlib import AttemptError, MeshError, NoInstances, ServiceUrl, Snapshot, Status, get, post, service_client
from meshlib.backends import open_backend
from meshlib.backends.local_db import Database
from meshlib.balance.fleet import Fleet
from meshlib.discovery import follow
from meshlib.discovery.merge import Known
from meshlib.mesh import Mesh
from meshlib.policies.failover import Failover
from meshlib.settings import Settings
from meshlib.transport import AsyncEngine, Engine

ORDERS = "orders"


@dataclass
class Order:
    id: int
    item: str
    served_by: str


@service_client(ORDERS)
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int, delay: int | None = None) -> Order: ...
    @get("/orders/{id}")
    async def afetch(self, id: int, delay: int | None = None) -> Order: ...
    @post("/orders/{id}")
    def change(self, id: int, delay: int | None = None) -> Order: ...
    @post("/orders/{id}")
    async def achange(self, id: int, delay: int | None = None) -> Order: ...


PAUSE = 0.25
"""Seconds between two looks at a view, due every 5 ms, in which the machine was elsewhere."""


class Record:
    """What the process has seen. ``failed`` are calls, ``attempts`` failed attempts, each with its time and error;
    ``in_flight`` are those at the same instance when the first attempt failed; ``timeline`` has a line ``(time, live,
    listed, suspects)`` for each change of the view; ``pauses`` are when the machine let it go on after it had stood still;
    ``wall`` is what the process takes for the time of day."""

    def __init__(self) -> None:
        self.calls = 0
        self.served: Counter[str] = Counter()
        self.failed: list[tuple[float, str]] = []
        self.attempts: list[tuple[float, str]] = []
        self.in_flight = 0
        self.from_env_ms = 0.0
        self.first_call_ms: float | None = None
        self.first_source: str | None = None
        self.timeline: list[tuple[float, bool, int, int]] = []
        self.pauses: list[float] = []
        self.wall = 0.0

    def answered(self, order: Order) -> None:
        self.served[order.served_by] += 1
        self.calls += 1

    def failure(self, error: Exception) -> None:
        self.failed.append((time.monotonic(), f"{type(error).__name__}: {error}"))
        self.calls += 1  # last: a report may be asked for in between

    def attempt(self, error: AttemptError) -> None:
        if not self.attempts:
            self.in_flight = len(error.endpoint.in_flight)
        self.attempts.append((time.monotonic(), f"{type(error).__name__}: {error}"))

    def observe(self, mesh: Mesh) -> None:
        """Note what changed of the view."""
        view = mesh.view(ORDERS)
        snapshot = view.snapshot or Snapshot(view.service)
        now = (view.live, len(snapshot.instances) - len(snapshot.suspects), len(snapshot.suspects))
        if not self.timeline or self.timeline[-1][1:] != now:
            self.timeline.append((time.monotonic(), *now))


def count_attempts(record: Record) -> None:
    """Have every failed attempt noted, those that nobody sees included."""
    send, asend = Engine.send, AsyncEngine.send

    def counted(self: Engine, call: Any) -> Any:
        try:
            return send(self, call)
        except AttemptError as error:
            record.attempt(error)
            raise

    async def acounted(self: AsyncEngine, call: Any) -> Any:
        try:
            return await asend(self, call)
        except AttemptError as error:
            record.attempt(error)
            raise

    Engine.send, AsyncEngine.send = counted, acounted  # type: ignore[method-assign]


def believe(known: Known | None, listing: Any, service: Any, *, now: float, clock: float, hard_age: float) -> Known:
    """What a merge without protection would do: the registry is right, always."""
    del known, clock, hard_age
    return Known(Snapshot(service, listing.instances, confirmed=now, revision=listing.revision))


def keep(_self: Fleet, _endpoint: Any, _ejection: Any = None) -> bool:
    """No ejection."""
    return False


def pass_through(_self: Failover, call: Any, proceed: Any) -> Any:
    """No failover."""
    return (yield from proceed(call))


def switch_off(defence: str) -> None:
    """Take one defence of the library away."""
    match defence:
        case "suspects":
            setattr(follow, "merge", believe)  # noqa: B010 - it is not the module's own name
        case "identity":  # of the local registry's file
            Database._usable = lambda self: self._handle  # type: ignore[method-assign]
        case "ejection":
            Fleet.eject = keep  # type: ignore[assignment, method-assign]
        case "failover":
            Failover.__call__ = pass_through  # type: ignore[assignment, method-assign]


async def paced(rate: float, tasks: int, stop: threading.Event, call: Callable[[int], Any]) -> None:
    """``call`` from ``tasks`` tasks, ``rate`` times a second together."""

    async def one(number: int) -> None:
        period = tasks / rate
        due = time.monotonic() + period * number / tasks
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + period, time.monotonic() - 1)
            await call(number)

    await asyncio.gather(*map(one, range(tasks)))


def calling(options: argparse.Namespace, mesh: Mesh, record: Record, stop: threading.Event) -> None:
    """Call until ``stop``; the thread's whole life."""
    orders = mesh.client(Orders)  # type: ignore[type-abstract]
    delay = options.delay or None
    began = time.perf_counter()

    def first() -> None:
        if record.first_call_ms is None:
            record.first_call_ms = record.from_env_ms + (time.perf_counter() - began) * 1000
            snapshot = mesh.view(ORDERS).snapshot
            record.first_source = snapshot.source if snapshot else None

    if options.kind == "sync":
        ask: Any = orders.change if options.post else orders.fetch

        def call(number: int) -> None:
            try:
                order = ask(number, delay=delay)
                first()
                record.answered(order)
            except MeshError as error:
                record.failure(error)

        due = time.monotonic()
        while not stop.is_set():
            stop.wait(max(0.0, due - time.monotonic()))  # not time.sleep: libfaketime breaks that
            due = max(due + 1 / options.rate, time.monotonic() - 1)
            call(1)
        return

    aask: Any = orders.achange if options.post else orders.afetch

    async def acall(number: int) -> None:
        try:
            order = await aask(number, delay=delay)
            first()
            record.answered(order)
        except MeshError as error:
            record.failure(error)

    asyncio.run(paced(options.rate, options.tasks, stop, acall))


def cacheless(options: argparse.Namespace, record: Record, stop: threading.Event) -> None:
    """What one writes without meshlib's discovery: look up, then call, each time."""
    settings = Settings.load()

    async def main() -> None:
        registry = open_backend(settings).registry
        async with httpx2.AsyncClient(timeout=2.0, trust_env=False) as client:

            async def call(number: int) -> None:
                try:
                    listed = (await registry.fetch(ServiceUrl(ORDERS))).instances
                    found = [one for one in listed if one.status is Status.UP]
                    if not found:
                        raise NoInstances("nobody is listed")
                    answer = await client.get(f"http://{found[record.calls % len(found)].netloc}/orders/{number}")
                    record.answered(Order(**answer.json()))
                except (MeshError, httpx2.HTTPError) as error:
                    record.failure(error)

            await paced(options.rate, options.tasks, stop, call)
        await registry.close()

    asyncio.run(main())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("sync", "async", "cacheless"), default="sync")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--delay", type=int, default=0)
    parser.add_argument("--post", action="store_true")
    parser.add_argument("--picker", default="peak_ewma")
    parser.add_argument("--without", action="append", default=[])
    return parser.parse_args()


def main() -> None:
    """Call until standard input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    options, record, stop = parse(), Record(), threading.Event()
    for defence in options.without:
        switch_off(defence)
    count_attempts(record)
    began = time.perf_counter()
    mesh = Mesh.from_env(picker=options.picker)
    record.from_env_ms = (time.perf_counter() - began) * 1000
    if options.kind == "cacheless":
        caller = threading.Thread(target=cacheless, args=(options, record, stop))
    else:
        caller = threading.Thread(target=calling, args=(options, mesh, record, stop))
        threading.Thread(target=observing, args=(mesh, record, stop), daemon=True).start()
    caller.start()
    for _ in sys.stdin:
        record.wall = time.time()
        print(json.dumps(vars(record)), flush=True)
    stop.set()
    caller.join()
    mesh.close()


def observing(mesh: Mesh, record: Record, stop: threading.Event) -> None:
    before = time.monotonic()
    while not stop.wait(0.005):
        record.observe(mesh)
        if (now := time.monotonic()) - before > PAUSE:
            record.pauses.append(now)
        before = now


if __name__ == "__main__":
    main()
