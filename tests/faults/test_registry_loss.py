"""The registry goes away, in every way it can, while consumers call: no call fails, and the mesh is whole again within 5 s
of its return. Beside the consumers under test runs one without the defence, as the negative control.

One cast per registry plays all scenes, each of which begins with the mesh whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.faults.registries import LOSSES, REGISTRIES, LocalFile, OnWire, Registry
from tests.faults.stage import Process, Report, Stage, everybody_served, newly_listed, soak_seconds
from tests.servers.base import eventually

PROVIDERS = 3
RECOVERY = 5.0
"""Seconds from the registry's return until everybody is registered and every view is live."""
OUTAGE = {"killed": 4.5, "frozen": 4.5, "cut off": 6.5}
"""Seconds. A silent network is noticed after 5 s: it must be seen in the test that it is."""
TTL = 4.0
"""Seconds; shorter than the outages, so that registrations expire in them."""
PATIENT = {"MESH_REGISTRY_TIMEOUT": "30", "MESH_COLD_START_TIMEOUT": "30", "MESH_TIMEOUT": "60"}
FIRST_CALL = 10_000.0
"""Milliseconds: not what a cold start should take (benchmarks/coldstart.py), but less than any time-out of a newcomer's."""
PACE = 10
"""Calls per second that are made at least, even by a busy machine. Would each wait for the registry, it were three."""
PATIENCE = 60.0
"""Seconds for what is no requirement."""


def whole(consumers: list[Process], instances: int, *, within: float) -> None:
    """Wait until every view is live and lists ``instances``, none of them a suspect."""

    def all_are() -> bool:
        return all(consumer.ask().whole_since(instances) is not None for consumer in consumers)

    eventually(all_are, within=within, what="every view is whole")


class Cast:
    """A registry, its providers, a blocking and an asyncio consumer, and the controls."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        registry.start()
        self.stage = Stage(registry.url, host=registry.serve_at, MESH_TTL=str(TTL))
        self.ports = [self.stage.provider()[0] for _ in range(PROVIDERS)]
        eventually(lambda: registry.listed() == PROVIDERS, within=PATIENCE, what="three providers are registered")
        self.consumers = [self.stage.consumer("--kind", kind) for kind in ("sync", "async")]
        self.cacheless = self.stage.consumer("--kind", "cacheless", "--rate", "20")
        self.believer = self.stage.consumer("--rate", "50", "--without", "suspects", MESH_STATE_DIR=str(self.stage.room / "b"))
        everybody_served([*self.consumers, self.cacheless, self.believer], self.ports)

    def settle(self) -> None:
        """Wait until a scene may begin."""
        whole([*self.consumers, self.believer], PROVIDERS, within=PATIENCE)
        time.sleep(0.5)

    def reports(self) -> list[Report]:
        """Of the consumers under test."""
        return [consumer.ask() for consumer in self.consumers]

    def no_call_failed(self, since: float) -> None:
        for report in self.reports():
            assert not (failed := report.failed_since(since)), f"{failed}\n{self.stage.logs()}"

    def control_notices(self, gone: float) -> None:
        """Wait until a call of the cacheless one has failed: it may still be waiting for answers of the scene before."""
        eventually(lambda: bool(self.cacheless.ask().failed_since(gone)), within=PATIENCE, what="the control notices")

    def blind(self, how: str) -> list[Process]:
        """The control where a file is removed: it is made anew so soon that the cacheless one may miss nothing. So here is a
        consumer that goes on with the file that it had opened; none for the other losses."""
        if not (isinstance(self.registry, LocalFile) and how in ("killed", "wiped")):
            return []
        blind = [self.stage.consumer("--rate", "20", "--without", "identity")]
        whole(blind, PROVIDERS, within=PATIENCE)
        return blind

    def recovered(self, blind: Iterable[Process] = ()) -> float:
        """Wait until all are registered and all views are live, which what is new must show: a view that never noticed
        the loss looks live, too, and those of the ``blind`` must not show it. The seconds it took since there is what is new."""
        with newly_listed(self.registry.url, self.registry.serve_at) as since:
            everybody = PROVIDERS + 1
            eventually(lambda: self.registry.listed() >= PROVIDERS, within=PATIENCE, what="all are registered again")
            registered = time.monotonic()
            whole(self.consumers, everybody, within=PATIENCE)
            took = max(registered, *(report.whole_since(everybody) or 0.0 for report in self.reports())) - since
            for control in blind:
                time.sleep(0.5)  # a look at the file is due every 0.05 s
                assert control.ask().whole_since(everybody) is None, "the control has noticed what it cannot"
                control.close()
            return took

    def close(self) -> None:
        self.stage.close()
        self.registry.close()


@pytest.fixture(scope="module", params=REGISTRIES)
def cast(request: pytest.FixtureRequest) -> Iterator[Cast]:
    registry: Registry = REGISTRIES[request.param]()
    try:
        made = Cast(registry)
    except BaseException:
        registry.close()
        raise
    yield made
    made.close()


def outage(cast: Cast, how: str, seconds: float) -> float:
    """The scene: lost for ``seconds``, and until whoever must notice has noticed; in the middle of it a new consumer starts.
    The seconds until the mesh was whole again."""
    cast.settle()
    blind = cast.blind(how)
    before, gone = cast.reports(), time.monotonic()
    cast.registry.lose(how)
    time.sleep(seconds / 2)
    newcomer = cast.stage.consumer("--rate", "20", **PATIENT)
    time.sleep(seconds / 2)
    # However long a busy machine takes to start a process, its first call falls into the outage.
    eventually(lambda: newcomer.ask().calls > 0, within=PATIENCE, what="a newcomer calls")
    if unreachable(cast.registry, how):
        eventually(
            lambda: all(one.loss_seen(gone) is not None for one in cast.reports()), within=PATIENCE, what="the loss is seen"
        )
    if not blind:
        cast.control_notices(gone)
    fresh, calls = newcomer.ask(), sum(report.calls for report in cast.reports())
    lasted = time.monotonic() - gone
    cast.registry.give_back(how)
    took = cast.recovered(blind)
    told(cast, f"{how} for {lasted:.1f} s", gone)
    print(f"  whole again after {took:.2f} s; a newcomer's first answer came after {fresh.first_call_ms} ms, "
          f"from {fresh.first_source}")  # fmt: skip
    cast.no_call_failed(gone)
    assert calls > sum(one.calls for one in before) + PACE * lasted
    assert not fresh.failed
    assert fresh.first_call_ms is not None
    assert fresh.first_call_ms - fresh.from_env_ms < FIRST_CALL  # importing a backend's library waits for nobody
    newcomer.close()
    return took


def in_time(scene: Callable[[], float]) -> None:
    """At most the second time: a registration or a look may be due just when the machine has something else to do."""
    assert any(scene() <= RECOVERY for _ in range(2)), f"not whole within {RECOVERY} s"


def unreachable(registry: Registry, how: str) -> bool:
    """True when the loss can be noticed within seconds. That nobody answers a question asked in the last moment before, is
    no sign of anything, and a proxy keeps connections alive."""
    if isinstance(registry, OnWire):
        return how == "killed" or (how == "cut off" and registry.namespace is not None)
    return how == "cut off"


def told(cast: Cast, what: str, gone: float) -> None:
    print(f"\n{type(cast.registry).__name__} {what}")
    for kind, one in zip(("sync", "async"), cast.reports(), strict=True):
        lost = one.loss_seen(gone)
        attempts = sum(at >= gone for at, _ in one.attempts)
        print(f"  {kind:5}: {one.calls} calls so far; since then {len(one.failed_since(gone))} failed, {attempts} attempts "
              f"failed; loss seen after {'-' if lost is None else f'{lost:.1f} s'}")  # fmt: skip
    print(f"  without a cache {len(cast.cacheless.ask().failed_since(gone))} failed")


@pytest.mark.parametrize("how", LOSSES)
def test_calls_go_on_without_the_registry(cast: Cast, how: str) -> None:
    in_time(lambda: outage(cast, how, OUTAGE[how]))


@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.soak
def test_calls_go_on_for_long_without_the_registry(cast: Cast, how: str) -> None:
    in_time(lambda: outage(cast, how, soak_seconds()))


def emptied(cast: Cast) -> float:
    """The scene: it dies, and comes back with nothing. The seconds until the mesh was whole again."""
    cast.settle()
    blind = cast.blind("wiped")
    gone = time.monotonic()
    if not blind:
        cast.registry.lose("killed")
        cast.control_notices(gone)
    cast.registry.wipe()
    took = cast.recovered(blind)
    print(f"{type(cast.registry).__name__:9} wiped  : all registered again and all views live in {took:.2f} s")
    cast.no_call_failed(gone)
    return took


def test_a_registry_that_comes_back_empty_is_filled_again(cast: Cast) -> None:
    in_time(lambda: emptied(cast))


def test_a_registry_that_forgets_from_one_moment_to_the_next_is_not_believed(cast: Cast) -> None:
    """Three times, and on a machine that was busy in one of them, some more; also where a heartbeat has followed each time
    before anybody could look."""
    cast.settle()
    began, quick, seen = time.monotonic(), 0, False
    for pause in (0.0, 0.3, 0.7, 0.1, 0.5, 0.9, 0.2, 0.6, 0.4, 0.8):
        time.sleep(pause)
        cast.registry.forget()
        took = eventually(lambda: cast.registry.listed() == PROVIDERS, within=PATIENCE, what="they heartbeat")
        whole(cast.consumers, PROVIDERS, within=PATIENCE)
        print(f"{type(cast.registry).__name__:9} emptied: registered again after {took:.2f} s "
              f"(a heartbeat is due every {TTL / 3:.2f} s)")  # fmt: skip
        quick += took <= TTL / 3 + 1.0
        seen = all(any(suspects for *_, suspects in one.seen_since(began)) for one in cast.reports())
        if quick >= 3 and seen and cast.believer.ask().failed_since(began):
            break
    assert quick >= 3, "they do not heartbeat in time"
    assert seen, "nobody has seen it empty"
    cast.no_call_failed(began)
    believed = cast.believer.ask().failed_since(began)
    print(f"{type(cast.registry).__name__:9} emptied: {len(believed)} calls failed where the registry was believed")
    assert believed, "the control has not noticed anything"
