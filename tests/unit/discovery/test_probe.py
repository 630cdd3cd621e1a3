"""Probing, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from meshlib.balance.endpoint import Ejection, Endpoint, Reason
from meshlib.balance.fleet import Fleet
from meshlib.discovery import probe
from meshlib.discovery.probe import PER_SECOND, Probes, delay, http, ping, probes, restore, tcp
from meshlib.model import Instance
from meshlib.testing import FakeClock, run_virtual
from tests.unit.discovery.snapshots import ORDERS, instance, snapshot


class Writer:
    closed = 0

    def close(self) -> None:
        self.closed += 1

    async def wait_closed(self) -> None:
        raise ConnectionResetError


def reached(connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> tuple[bool, float]:
    clock = FakeClock()

    async def main() -> bool:
        return await tcp(timeout=2.0)(instance("a"))

    monkeypatch.setattr(asyncio, "open_connection", connect)
    return run_virtual(main(), clock=clock), clock() - 1000.0


def test_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()

    async def connect(host: str, port: int) -> Any:
        assert (host, port) == ("10.0.0.5", 8080)
        return None, writer

    assert reached(connect, monkeypatch) == (True, 0.0)
    assert writer.closed == 1


@pytest.mark.parametrize("problem", [ConnectionRefusedError(), OSError(113, "No route"), UnicodeError("label too long")])
def test_nobody_listens(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: Any) -> Any:
        raise problem

    assert reached(connect, monkeypatch) == (False, 0.0)


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: Any) -> Any:
        await asyncio.Event().wait()

    assert reached(connect, monkeypatch) == (False, 2.0)


def test_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = 0, 0

    async def connect(*_: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.1)
        now -= 1
        raise ConnectionRefusedError

    async def main() -> None:
        reach = tcp(timeout=1.0)
        await asyncio.gather(*(reach(instance("a")) for _ in range(100)))

    monkeypatch.setattr(asyncio, "open_connection", connect)
    run_virtual(main())
    assert most == probe.CONCURRENT


def test_delays() -> None:
    assert [delay(failures, uniform=lambda: 1.0) for failures in (0, 1, 2, 3, 4, 20)] == [0.1, 0.1, 0.2, 0.4, 0.8, 5.0]
    assert delay(1, uniform=lambda: 0.0) == 0.05
    assert delay(20, uniform=lambda: 0.0) == 2.5


class Peer:
    """Answers from the ``after``-th probe on."""

    def __init__(self, after: int) -> None:
        self.after, self.probes = after, 0

    async def reach(self, _: Instance) -> bool:
        self.probes += 1
        return self.probes >= self.after


@pytest.mark.parametrize(("after", "at_most"), [(1, 0.1), (2, 0.3), (5, 3.1)])
def test_who_answers_comes_back(after: int, at_most: float) -> None:
    clock, fleet, peer = FakeClock(), Fleet(ORDERS), Peer(after)
    fleet.update(snapshot(instance("a")))
    (endpoint,) = fleet.tiers.prime
    fleet.eject(endpoint)
    assert not fleet.tiers.prime
    run_virtual(restore(fleet, endpoint, Probes(peer.reach, peer.reach)), clock=clock)
    assert fleet.tiers.prime == (endpoint,)
    assert peer.probes == after
    # Never at once: the socket of a process that is being killed accepts a little longer.
    assert 0.0 < clock() - 1000.0 <= at_most + 1e-9


def test_who_is_no_longer_listed_is_no_longer_probed() -> None:
    fleet, peer = Fleet(ORDERS), Peer(10**9)
    fleet.update(snapshot(instance("a"), instance("b")))
    endpoint = fleet.tiers.prime[0]
    fleet.eject(endpoint)

    async def main() -> None:
        task = asyncio.create_task(restore(fleet, endpoint, Probes(peer.reach, peer.reach)))
        await asyncio.sleep(60)
        assert not task.done()
        fleet.update(snapshot(instance("b")))
        await asyncio.sleep(5.1)
        assert task.done()

    run_virtual(main())


# -- what brings whom back


class Asked:
    """Both probes; ``answers`` begins to say yes at its ``after``-th time."""

    def __init__(self, after: int = 1) -> None:
        self.after, self.asked = after, 0
        self.probes = Probes(self.reach, self.answers)

    async def reach(self, _: Instance) -> bool:
        return True  # the socket of a stopped process accepts

    async def answers(self, _: Instance) -> bool:
        self.asked += 1
        return self.asked >= self.after


def out(reason: Reason, seconds: float = 0.0) -> tuple[Fleet, Endpoint]:
    fleet = Fleet(ORDERS)
    fleet.update(snapshot(instance("a"), instance("b")))
    endpoint = fleet.tiers.prime[0]
    assert fleet.eject(endpoint, Ejection(reason, seconds))
    return fleet, endpoint


def test_who_hung_has_to_answer_and_not_only_to_accept() -> None:
    asked, clock = Asked(after=4), FakeClock()
    fleet, endpoint = out(Reason.HUNG)
    run_virtual(restore(fleet, endpoint, asked.probes), clock=clock)
    assert asked.asked == 4
    assert endpoint.ejected is None


def test_an_outlier_comes_back_when_its_time_is_up_and_is_asked_nothing() -> None:
    asked, clock = Asked(), FakeClock()
    fleet, endpoint = out(Reason.OUTLIER, 17.0)
    run_virtual(restore(fleet, endpoint, asked.probes), clock=clock)
    assert (clock() - 1000.0, asked.asked, endpoint.ejected) == (17.0, 0, None)


def test_another_ejection_is_another_ones_business() -> None:
    """It was restored meanwhile and ejected anew: the first watch over it ends without touching the second ejection."""
    fleet, endpoint = out(Reason.OUTLIER, 10.0)

    async def main() -> None:
        task = asyncio.create_task(restore(fleet, endpoint, Asked().probes))
        await asyncio.sleep(1)
        fleet.restore(endpoint, endpoint.ejected)  # type: ignore[arg-type]
        fleet.eject(endpoint, Ejection(Reason.OUTLIER, 60.0))
        await task
        assert endpoint.ejected is not None

    run_virtual(main())


# -- over HTTP


def asked_over_http(path: str, handler: Callable[[httpx2.Request], httpx2.Response]) -> tuple[bool, float]:
    clock = FakeClock()
    reach = http(lambda _instance: httpx2.MockTransport(handler), path, timeout=2.0)
    return run_virtual(reach(instance("a")), clock=clock), clock() - 1000.0


@pytest.mark.parametrize(
    ("path", "status", "well"), [("*", 200, True), ("*", 500, True), ("/healthz", 200, True), ("/healthz", 404, True),
                                 ("/healthz", 503, False)],
)  # fmt: skip
def test_what_counts_as_an_answer(path: str, status: int, well: bool) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        assert request.method == ("OPTIONS" if path == "*" else "GET")
        assert request.extensions["target"] == path.encode()
        assert request.url.host == "10.0.0.5"
        return httpx2.Response(status)

    assert asked_over_http(path, handler) == (well, 0.0)


@pytest.mark.parametrize("problem", [httpx2.ConnectError("refused"), httpx2.ReadTimeout("late"), OSError(113, "No route")])
def test_no_answer_over_http(problem: Exception) -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        raise problem

    assert asked_over_http("*", handler) == (False, 0.0)


def test_an_answer_that_does_not_come() -> None:
    async def handler(_: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    assert asked_over_http("*", handler) == (False, 2.0)  # type: ignore[arg-type]


def test_which_probe_is_whose() -> None:
    asked: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.extensions["target"].decode())
        return httpx2.Response(204)

    def made(kind: str) -> Probes:
        return probes(kind, lambda _instance: httpx2.MockTransport(handler), timeout=1.0)

    async def main() -> None:
        await made("tcp").answers(instance("a"))
        await made("/up").answers(instance("a"))
        await made("/up").reach(instance("a"))

    run_virtual(main())
    assert asked == ["*", "/up", "/up"]


# -- pings


class Health:
    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.at: list[float] = []
        self.clock = FakeClock()

    async def reach(self, asked: Instance) -> bool:
        self.at.append(self.clock())
        return asked.id not in self.dead


def pinged(count: int, seconds: float, *, every: float = 10.0, dead: str = "") -> tuple[Health, Fleet]:
    health, fleet = Health(), Fleet(ORDERS)
    health.dead = set(dead.split())
    fleet.update(snapshot(*(instance(f"i{number:04}") for number in range(count))))

    async def main() -> None:
        task = asyncio.create_task(ping(fleet, health.reach, every, uniform=lambda: 0.5))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(main(), clock=health.clock)
    return health, fleet


def test_who_does_not_answer_a_ping_is_taken_out_though_nobody_called() -> None:
    health, fleet = pinged(3, 10.5, dead="i0001")
    assert [one.instance.id for one in fleet.tiers.ejected] == ["i0001"]
    assert len(health.at) == 3


def test_without_ping_it_stays_in_rotation() -> None:
    """The control."""
    _, fleet = pinged(3, 0.0, dead="i0001")
    assert len(fleet.tiers.prime) == 3


def test_pings_are_spread_and_bounded_in_rate() -> None:
    health, _ = pinged(10, 30.0)
    assert 28 <= len(health.at) <= 30
    assert max(b - a for a, b in pairwise(health.at)) <= 1.01, "one after the other with gaps, not ten at once"
    health, _ = pinged(5000, 20.0, every=1.0)
    assert len(health.at) <= 20 * PER_SECOND + 1


def test_nobody_to_ping() -> None:
    health, _ = pinged(0, 100.0)
    assert health.at == []
