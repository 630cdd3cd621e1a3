"""An instance dies under load: SIGKILL. The registry goes on listing it (its ttl is long), so what helps is the consumer's own:
the endpoint is taken out with the first failed connection, and the call goes elsewhere."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.faults.registries import LocalFile
from tests.faults.stage import Process, Report, Stage, everybody_served, soak_seconds
from tests.servers.base import eventually

TASKS = 8
DELAY = ("--delay", "30")
"""Milliseconds that an answer takes, so that there is always something in flight."""
FAIR = ("--picker", "least_request")
"""Not by latency: on a busy machine the victim might be slow, and nobody would call it."""
KINDS = {
    "sync": ("--kind", "sync", "--rate", "25", *FAIR, *DELAY),
    "async": ("--kind", "async", "--tasks", f"{TASKS}", "--rate", "200", *FAIR, *DELAY),
}


@pytest.fixture
def stage() -> Iterator[Stage]:
    registry = LocalFile()
    with Stage(registry.url, MESH_CONNECT_TIMEOUT="10") as made:  # attempts that a busy machine fails are counted, too
        yield made
    registry.close()


def bereaved(stage: Stage, *options: str) -> tuple[Report, Process, str]:
    """What a consumer with ``options`` has seen when it has noticed that one of three instances was killed, and somewhat later,
    and its port."""
    providers = dict(stage.provider() for _ in range(3))
    consumer = stage.consumer(*options)
    everybody_served([consumer], providers)
    port, victim = next(iter(providers.items()))
    victim.signal(signal.SIGKILL)
    victim.wait()
    eventually(lambda: bool(consumer.ask().attempts), within=60, what="it is noticed")
    time.sleep(1.5)
    return consumer.ask(), consumer, port


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_instance_costs_its_attempts_in_flight_and_no_call(stage: Stage, kind: str) -> None:
    seen, consumer, port = bereaved(stage, *KINDS[kind])
    print(f"{kind:5}: {len(seen.attempts)} attempts failed, {seen.in_flight} in flight there, {len(seen.failed)} calls failed")
    assert not seen.failed
    assert 1 <= len(seen.attempts) <= seen.in_flight <= (1 if kind == "sync" else TASKS), seen.attempts
    restarted(stage, consumer, port)


def restarted(stage: Stage, consumer: Process, port: str) -> None:
    before = consumer.ask()
    started = time.monotonic()
    stage.provider(port=port)
    serving = time.monotonic()
    eventually(lambda: consumer.ask().served[port] > before.served[port], within=60, what="the restarted instance is used")
    now = time.monotonic()
    print(f"restarted: used {now - started:.2f} s after its start, {now - serving:.2f} s after it listens")
    assert not consumer.ask().failed


@pytest.mark.parametrize("kind", KINDS)
def test_without_ejection_attempts_go_on_failing(stage: Stage, kind: str) -> None:
    _, consumer, _ = bereaved(stage, *KINDS[kind], "--without", "ejection", "--picker", "round_robin")

    def go_on() -> bool:
        seen = consumer.ask()
        return len(seen.attempts) > max(seen.in_flight, 5)

    eventually(go_on, within=60, what="more attempts fail than were in flight")
    print(f"{kind:5} without ejection: {len(consumer.ask().attempts)} attempts failed")


@pytest.mark.parametrize("kind", KINDS)
def test_without_failover_the_caller_sees_it(stage: Stage, kind: str) -> None:
    _, consumer, _ = bereaved(stage, *KINDS[kind], "--without", "failover")

    def all_are_seen() -> bool:
        seen = consumer.ask()
        return len(seen.failed) == len(seen.attempts) >= 1

    eventually(all_are_seen, within=60, what="each failed attempt is a failed call")  # noted one after the other
    print(f"{kind:5} without failover: {len(consumer.ask().failed)} calls failed")


TIMEOUT = 2.0
"""Seconds that the consumer gives a call."""


def stopped(stage: Stage, *options: str) -> tuple[Report, float, Process, Process, str]:
    """What a consumer has seen some time after one of three instances was stopped (SIGSTOP): its socket still accepts."""
    providers = dict(stage.provider() for _ in range(3))
    consumer = stage.consumer(*options, MESH_TIMEOUT=str(TIMEOUT))
    everybody_served([consumer], providers)
    port, victim = next(iter(providers.items()))
    victim.signal(signal.SIGSTOP)
    when = time.monotonic()
    time.sleep(3 * TIMEOUT)
    return consumer.ask(), when, consumer, victim, port


@pytest.mark.parametrize("kind", KINDS)
def test_a_hung_instance_costs_one_timeout(kind: str) -> None:
    """At most the third time: where the machine itself hangs for so long, it is not the instance."""
    assert any(costs_one_timeout(kind) for _ in range(3))


def costs_one_timeout(kind: str) -> bool:
    """And when it goes on, it is used again."""
    with closing(LocalFile()) as registry, Stage(registry.url) as stage:
        seen, when, consumer, victim, port = stopped(stage, *KINDS[kind])
        print(f"{kind:5}: {len(seen.failed)} calls failed: {seen.failed}")
        victim.signal(signal.SIGCONT)
        before = consumer.ask()
        took = eventually(lambda: consumer.ask().served[port] > before.served[port] + 5, within=60, what="it is used again")
        print(f"{kind:5}: used again {took:.2f} s after it went on")
    # Who called it before the first time-out has to wait for its own; nobody begins to afterwards.
    in_flight, too_late = (1 if kind == "sync" else TASKS), seen.failed_since(when + 2 * TIMEOUT + 0.5)
    return 0 < len(seen.failed) <= in_flight and not too_late


@pytest.mark.parametrize("kind", KINDS)
def test_without_ejection_a_hung_instance_costs_more(stage: Stage, kind: str) -> None:
    _, when, consumer, victim, _ = stopped(stage, *KINDS[kind], "--without", "ejection", "--picker", "round_robin")

    def costs_more() -> bool:
        seen = consumer.ask()
        return bool(seen.failed_since(when + TIMEOUT + 0.5)) and len(seen.failed) > (1 if kind == "sync" else TASKS)

    eventually(costs_more, within=60, what="more calls fail than were in flight")
    victim.signal(signal.SIGCONT)
    print(f"{kind:5} without ejection: {len(consumer.ask().failed)} calls failed")


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_instances_that_die_again_and_again_cost_no_call(stage: Stage, kind: str) -> None:
    _, consumer, port = bereaved(stage, *KINDS[kind])
    deadline, deaths = time.monotonic() + soak_seconds(), 1
    while time.monotonic() < deadline:
        _, victim = stage.provider(port=port)
        count = consumer.ask().served[port]
        eventually(lambda: consumer.ask().served[port] > count + 10, within=60, what="it is used")  # noqa: B023
        victim.signal(signal.SIGKILL)
        victim.wait()
        deaths += 1
        time.sleep(0.5)
    seen = consumer.ask()
    print(f"{kind:5}: {deaths} deaths, {seen.calls} calls, {len(seen.attempts)} attempts failed, {len(seen.failed)} failed")
    assert not seen.failed
    assert len(seen.attempts) <= deaths * (1 if kind == "sync" else TASKS)
