"""The time of day jumps, by an hour or to 1970, under providers and consumers: no call fails, nobody's registration is lost,
and no list of instances is thrown away. Only what is on disk is dated by the wall.

The control measures all time by the wall.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.clock import HOUR, Clock
from tests.faults.registries import REGISTRIES, LocalFile, Registry
from tests.faults.stage import Stage, everybody_served
from tests.servers.base import eventually

PROVIDERS = 3
TTL = 5.0
BUSY = ("--kind", "async", "--tasks", "8", "--rate", "50", "--delay", "100")
"""Always some call in flight."""


@pytest.fixture(params=["consul", "local"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    made: Registry = REGISTRIES[request.param]()
    try:
        made.start()
        yield made
    finally:
        made.close()


def forwards(providers: Clock, consumers: Clock) -> None:
    providers.set(HOUR)
    consumers.set(-HOUR)


def backwards(providers: Clock, consumers: Clock) -> None:
    providers.set(-HOUR)
    consumers.set(HOUR)


def to_1970(providers: Clock, consumers: Clock) -> None:
    providers.set_to_1970()
    consumers.set_to_1970()


def and_back(providers: Clock, consumers: Clock) -> None:
    providers.set(0)
    consumers.set(0)


JUMPS: list[Callable[[Clock, Clock], None]] = [forwards, backwards, to_1970, and_back]


def test_a_wall_clock_that_jumps_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    providers, consumers = Clock(tmp_path / "providers"), Clock(tmp_path / "consumers")
    with Stage(registry.url, host=registry.serve_at, MESH_TTL=str(TTL)) as stage:
        ports = [stage.provider(**providers.env)[0] for _ in range(PROVIDERS)]
        eventually(lambda: registry.listed() == PROVIDERS, within=60, what="three providers are registered")
        consumer, other = stage.consumer(*BUSY, **consumers.env), stage.consumer("--rate", "20", **consumers.env)
        everybody_served([consumer, other], ports)
        eventually(lambda: consumer.ask().whole_since(PROVIDERS) is not None, within=60, what="the view is whole")
        began, listed, walls = time.monotonic(), set[int](), list[float]()
        for jump in JUMPS:
            jump(providers, consumers)
            until = time.monotonic() + TTL + 0.5
            while time.monotonic() < until:
                listed.add(registry.listed())
                time.sleep(0.05)
            walls.append(consumer.ask().wall - time.time())
        seen = [consumer.ask(), other.ask()]
        print(f"\n{type(registry).__name__}: the consumer's clock was ahead by {[round(wall) for wall in walls]} s; "
              f"{[one.calls for one in seen]} calls, {[len(one.failed) for one in seen]} failed; listed were {listed}")  # fmt: skip
        assert [round(wall / HOUR) for wall in walls[:2]] == [-1, 1]
        assert walls[2] < -1e9
        assert listed == {PROVIDERS}
        for one in seen:
            assert not one.failed, f"{one.failed}\n{stage.logs()}"
            assert {tuple(line[1:]) for line in one.seen_since(began)} == {(True, PROVIDERS, 0)}
        newcomer_finds_the_snapshot(registry, stage, ports[0], tmp_path)


def newcomer_finds_the_snapshot(registry: Registry, stage: Stage, port: str, room: Path) -> None:
    """A process that starts without the registry and an hour early takes a snapshot from the future; one that starts an hour
    late takes none that is too old for it, which is the control: the clock does matter there. Their snapshots are of now, for
    that of the consumers may be of a time to which their clock was set."""
    registry.lose("cut off" if isinstance(registry, LocalFile) else "killed")
    early, late = Clock(room / "early"), Clock(room / "late")
    early.set(-HOUR)
    late.set(HOUR)
    stage.remember(port, room / "now")
    env = {"MESH_COLD_START_TIMEOUT": "0.5", "MESH_SNAPSHOT_MAX_AGE": f"{HOUR / 2}", "MESH_STATE_DIR": str(room / "now")}
    fresh = stage.consumer("--rate", "20", **env, **early.env)
    none = stage.consumer("--rate", "20", **env, **late.env)
    for one in (fresh, none):
        eventually(lambda: one.ask().calls > 5, within=60, what="it calls")  # noqa: B023
    assert fresh.ask().first_source == "disk"
    assert not fresh.ask().failed
    assert "NoInstances" in none.ask().failed[0][1]


def test_measured_by_the_wall_a_registration_is_lost_and_calls_fail(tmp_path: Path) -> None:
    providers, consumers = Clock(tmp_path / "providers", by_wall=True), Clock(tmp_path / "consumers", by_wall=True)
    with closing(REGISTRIES["consul"]()) as registry:
        registry.start()
        with Stage(registry.url, host=registry.serve_at, MESH_TTL=str(TTL)) as stage:
            steady, _ = stage.provider()
            stage.provider(**providers.env)
            eventually(lambda: registry.listed() == 2, within=60, what="both are registered")
            consumer = stage.consumer(*BUSY, **consumers.env)
            everybody_served([consumer], [steady])
            assert not consumer.ask().failed
            set_until(lambda: bool(consumer.ask().failed), consumers, HOUR, what="calls whose deadline seems to be over fail")
            set_until(
                lambda: registry.listed() == 1, providers, -HOUR, what="a registration with its heartbeat an hour away is lost"
            )


def set_until(holds: Callable[[], bool], clock: Clock, ahead: float, *, what: str) -> None:
    """By an hour, again and again: who is busy just then, and begins to wait only after it, notices nothing."""
    hours, due = itertools.count(1), 0.0

    def check() -> bool:
        nonlocal due
        if time.monotonic() >= due:
            clock.set(ahead * next(hours))
            due = time.monotonic() + 2 * TTL
        return holds()

    eventually(check, within=20 * TTL, what=what)
