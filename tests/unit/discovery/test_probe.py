"""Probing, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshlib.balance.fleet import Fleet
from meshlib.discovery import probe
from meshlib.discovery.probe import Probes, delay, restore, tcp
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
