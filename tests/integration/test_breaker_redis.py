"""Circuits that processes share through a real Redis, which dies and hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pybreaker
import pytest
from redis.backoff import NoBackoff
from redis.retry import Retry

from meshlib import CircuitOpen, circuit_breaker
from meshlib.events import Events
from meshlib.flow import compose, run
from meshlib.policies.base import Site
from tests.servers.base import eventually
from tests.servers.redis import RedisServer
from tests.unit.flows import Answer, Script, call_to


@pytest.fixture
def server() -> Iterator[RedisServer]:
    made = RedisServer()
    try:
        made.start()
        yield made
    finally:
        made.close()


def storage_of(server: RedisServer, **client_options: Any) -> Callable[[str], Any]:
    client = server.client(**client_options)
    return lambda name: pybreaker.CircuitRedisStorage("closed", client, namespace=name)


class Caller:
    """One circuit of a process: here, of a site of its own, with a storage of its own."""

    def __init__(self, server: RedisServer, **options: Any) -> None:
        self.events = Events()
        policy = circuit_breaker(
            minimum=2, probes=1, storage=storage_of(server, retry=Retry(NoBackoff(), 0)), **{"open_for": 60.0, **options}
        )
        self.layer: Any = policy.bind(Site(service="orders", method="fetch", events=self.events))

    def call(self, status: int = 200) -> str:
        try:
            run(compose([self.layer]), call_to(), Script(Answer(status)))
        except CircuitOpen:
            return "x"
        return "-"

    def becomes(self, end: str) -> None:
        eventually(lambda: self.call() == end, what=lambda: f"{end}: {self.layer.breaker}")

    def fail(self) -> None:
        eventually(lambda: self.call(500) == "x", what="it is open")

    def counted(self, kind: str) -> int:
        return self.events.counts().get((f"circuit_breaker.{kind}", "orders", "fetch"), 0)


def test_open_and_closed_for_all(server: RedisServer) -> None:
    one, other, alone = Caller(server), Caller(server), circuit_breaker(minimum=2).bind(Site(service="orders"))
    one.fail()
    other.becomes("x")
    run(compose([alone]), call_to(), Script(Answer()))  # the negative control: without a storage
    other.layer.breaker.close()
    one.becomes("-")
    assert (one.counted("opened"), one.counted("closed"), other.counted("opened")) == (1, 1, 1)
    late = Caller(server)
    assert late.call() == "-"


def test_together_with_pybreaker(server: RedisServer) -> None:
    storage = storage_of(server)("orders.fetch")
    theirs = pybreaker.CircuitBreaker(reset_timeout=60, state_storage=storage)
    ours = Caller(server)
    ours.fail()
    eventually(lambda: theirs.current_state == "open")
    with pytest.raises(pybreaker.CircuitBreakerError):
        theirs.call(print)
    theirs.close()
    ours.becomes("-")
    theirs.open()
    ours.becomes("x")


CHILD = """
import sys, pybreaker, redis
from meshlib import breakers_of, circuit_breaker

client = redis.Redis(port=int(sys.argv[1]))
@circuit_breaker(minimum=2, open_for=60.0, storage=lambda name: pybreaker.CircuitRedisStorage("closed", client, namespace="orders.fetch"))
def work():
    raise OSError

while breakers_of(work)[0].state != "open":
    try:
        work()
    except OSError:
        pass
input()
"""


def test_another_process(server: RedisServer) -> None:
    ours = Caller(server)
    assert ours.call() == "-"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(server.port)], stdin=subprocess.PIPE)
    try:
        eventually(lambda: ours.call() == "x", within=60, what="it has started, and opened the circuit")
    finally:
        child.communicate(b"\n", timeout=60)
    assert child.returncode == 0


def test_one_that_hangs_holds_up_nobody(server: RedisServer) -> None:
    one = Caller(server)
    other = Caller(server)
    one.fail()
    other.becomes("x")
    server.freeze()
    try:
        for _ in range(300):
            assert one.call() + other.call() == "xx"
        fresh = Caller(server)
        for _ in range(300):
            assert fresh.call() == "-"
        fresh.layer.breaker.close()
        for _ in range(300):
            fresh.call(500)
        assert fresh.call() == "x", "each goes by what it sees itself"
        asked = threading.Thread(target=lambda: storage_of(server)("control"), daemon=True)
        asked.start()
        asked.join(0.5)
        assert asked.is_alive(), "the negative control: who asks it, waits"
    finally:
        server.thaw()
    asked.join(30)
    assert not asked.is_alive()


def test_one_that_dies_and_comes_back(server: RedisServer) -> None:
    one, other = Caller(server, open_for=30.0), Caller(server, open_for=30.0)
    one.fail()
    other.becomes("x")
    server.kill()
    other.layer.breaker.close()
    eventually(lambda: other.call() == "-" and other.counted("unshared") == 1)
    eventually(lambda: one.call() == "x" and one.counted("unshared") == 1, what=lambda: f"open: {one.layer.breaker}")
    server.start()  # it has lost everything
    other.fail()
    late = Caller(server)
    eventually(lambda: other.call() + late.call() == "xx", what=lambda: f"open: {late.layer.breaker}")
