"""Ten instances, half of which misbehave: three answer slowly, one fails every other time, one is stopped (SIGSTOP). Callers
hardly notice; with round robin and nobody taken out (the control), they do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from math import nan
from typing import Protocol

import pytest

from meshlib import MeshError, get, service_client
from meshlib.mesh import Mesh
from tests.faults.stage import TOP
from tests.faults.unequal import DELAY

pytestmark = pytest.mark.alone

RATE = 200.0
TIMEOUT = 1.0
HEALTHY, SETTLING, SICK = 3.0, 2.0, 6.0
"""Seconds of each phase."""


@service_client("orders", timeout=TIMEOUT)
class Orders(Protocol):
    @get("/orders")
    async def fetch(self) -> int: ...


class Instances:
    """``count`` instances of one process."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "tests.faults.unequal", str(count)]
        self.process = subprocess.Popen(command, cwd=TOP, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.ports = [int(port) for port in self.process.stdout.readline().split()]

    def tell(self, port: int, delay: float, failing: int = 0) -> None:
        assert self.process.stdin is not None
        print(port, delay, failing, file=self.process.stdin, flush=True)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.kill()
        self.process.wait()


class Calls:
    """Calls at :data:`RATE`, each noted as ``(start, seconds, port or None)``."""

    def __init__(self) -> None:
        self.done: list[tuple[float, float, int | None]] = []
        self.errors: Counter[str] = Counter()

    async def one(self, orders: Orders) -> None:
        start = time.monotonic()
        try:
            port: int | None = await orders.fetch()
        except MeshError as error:
            port = None
            self.errors[type(error).__name__] += 1
        self.done.append((start, time.monotonic() - start, port))

    async def go_on(self, orders: Orders) -> None:
        due, tasks = time.monotonic(), set()
        try:
            while True:
                task = asyncio.create_task(self.one(orders))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due = max(due + 1 / RATE, time.monotonic() - 0.5)
                await asyncio.sleep(due - time.monotonic())
        finally:
            await asyncio.gather(*tasks)

    def between(self, start: float, end: float) -> tuple[float, float]:
        """The p99 of the seconds that calls begun in that time took, and the share that succeeded; nan if nobody knows."""
        calls = [(seconds, port) for at, seconds, port in self.done if start <= at < end]
        if len(calls) <= RATE:  # too few to say anything
            return nan, nan
        return (sorted(seconds for seconds, _ in calls)[int(len(calls) * 0.99)],
                sum(port is not None for _, port in calls) / len(calls))  # fmt: skip


async def play(mesh: Mesh, many: Instances, stopping: Instances) -> tuple[float, float, float, Calls]:
    """The p99 while all are well, and p99 and success from :data:`SETTLING` after half of them are not."""
    orders, calls = mesh.client(Orders), Calls()  # type: ignore[type-abstract]
    caller = asyncio.create_task(calls.go_on(orders))
    await asyncio.sleep(1.0)
    began = time.monotonic()
    await asyncio.sleep(HEALTHY)
    for port in many.ports[:3]:
        many.tell(port, DELAY * 10)
    many.tell(many.ports[3], DELAY, failing=2)
    stopping.process.send_signal(signal.SIGSTOP)
    sick = time.monotonic()
    await asyncio.sleep(SETTLING + SICK)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await mesh.aclose()
    usual, _ = calls.between(began, sick)
    slowest, success = calls.between(sick + SETTLING, sick + SETTLING + SICK)
    return usual, slowest, success, calls


def measured(**settings: object) -> Iterator[tuple[float, float]]:
    """The p99 as a multiple of the usual one, and the share of calls that succeeded, of four tries: who else uses the machine
    shows in them, too."""
    for _ in range(4):
        with closing(Instances(9)) as many, closing(Instances(1)) as stopping:
            yield measured_once(many, stopping, **settings)


def measured_once(many: Instances, stopping: Instances, **settings: object) -> tuple[float, float]:
    addresses = ",".join(f"127.0.0.1:{port}" for port in (*many.ports, *stopping.ports))
    mesh = Mesh.from_env(registry=f"static://orders={addresses}", **settings)
    usual, slowest, success, calls = asyncio.run(play(mesh, many, stopping))
    os.kill(stopping.process.pid, signal.SIGCONT)
    print(f"{settings}: p99 {usual * 1e3:.1f} -> {slowest * 1e3:.1f} ms ({slowest / usual:.2f}x), "
          f"{success:.3%} succeeded after {SETTLING} s; {dict(calls.errors)}")  # fmt: skip
    return slowest / usual, success


def test_half_the_fleet_misbehaves_and_callers_hardly_notice() -> None:
    assert any(slower <= 2.0 and success >= 0.999 for slower, success in measured())


def test_with_round_robin_and_nobody_taken_out_they_do() -> None:
    unprotected = measured(picker="round_robin", ejection_share=0.0)
    assert any(slower > 4.0 and success < 0.95 for slower, success in unprotected)
