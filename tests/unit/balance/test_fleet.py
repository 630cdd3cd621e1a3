"""Fleets: what an endpoint keeps over updates, and when its connections may be closed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meshlib.balance import tiers
from meshlib.balance.endpoint import Endpoint
from meshlib.balance.fleet import Fleet
from meshlib.discovery.view import View
from meshlib.model import Status
from tests.servers.base import eventually
from tests.unit.flows import fleet, instance, update
from tests.unit.wiring import Contended


def names(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [endpoint.instance.id for endpoint in endpoints]


def test_tiers() -> None:
    known = fleet("a", instance("b", status=Status.DRAINING), instance("c", status=Status.MAINTENANCE), "d", "e")
    update(known, "a", instance("b", status=Status.DRAINING), instance("c", status=Status.MAINTENANCE), "d", "e", suspects="d")
    known.eject(known.find("e"))
    assert names(known.tiers.prime) == ["a"]
    assert names(known.tiers.reserve) == ["b", "d"]
    assert names(known.tiers.ejected) == ["e"]
    assert known.find("c") is not None


def test_a_lower_tier_is_used_only_when_the_ones_above_are_empty() -> None:
    known = fleet("a", instance("b", status=Status.DRAINING))
    assert names(known.tiers.usable) == ["a"]
    known.eject(known.find("a"))
    assert names(known.tiers.usable) == ["b"]
    known.eject(known.find("b"))
    assert names(known.tiers.usable) == ["a", "b"]


def test_an_endpoint_of_the_same_generation_keeps_its_state() -> None:
    known = fleet("a")
    before = known.find("a")
    before.in_flight.add(1)
    known.eject(before)
    update(known, instance("a", weight=7))
    assert known.find("a") is before
    assert before.instance.weight == 7
    assert before.ejected


@pytest.mark.parametrize("change", [{"generation": "2"}, {"scheme": "https"}])
def test_another_generation_starts_afresh(change: dict[str, str]) -> None:
    drained: list[Endpoint] = []
    known = fleet("a", on_drained=drained.append)
    before = known.find("a")
    known.eject(before)
    update(known, instance("a", **change))
    assert known.find("a") is not before
    assert names(known.tiers.prime) == ["a"]
    assert drained == [before]


def test_connections_are_closed_when_the_last_attempt_is_over_and_again_for_latecomers() -> None:
    drained: list[Endpoint] = []
    known = fleet("a", on_drained=drained.append)
    endpoint = known.find("a")
    endpoint.in_flight |= {1, 2}
    update(known, "b")
    endpoint.release(1)
    assert drained == []
    endpoint.release(2)
    endpoint.in_flight.add(3)
    endpoint.release(3)
    assert drained == [endpoint, endpoint]


def test_eject_tells_once_and_not_of_the_retired() -> None:
    told: list[tuple[Fleet, Endpoint]] = []
    known = fleet("a", on_eject=lambda *what: told.append(what))
    endpoint = known.find("a")
    known.eject(endpoint)
    known.eject(endpoint)
    assert told == [(known, endpoint)]
    assert endpoint.ejected is not None
    known.restore(endpoint, endpoint.ejected)
    assert names(known.tiers.prime) == ["a"]
    update(known)
    known.eject(endpoint)
    assert len(told) == 1


def test_one_that_comes_back_is_new() -> None:
    known = fleet("a")
    before = known.find("a")
    update(known)
    assert known.tiers.usable == ()
    update(known, "a")
    assert known.find("a") is not before


def test_a_child_process_forgets_what_was_under_way() -> None:
    known = fleet("a", "b")
    known.find("a").in_flight.add(1)
    known.eject(known.find("b"))
    known._lock.acquire()  # as a thread of the parent may have it
    known.forked()
    assert names(known.tiers.prime) == ["a", "b"]
    assert not known.find("a").in_flight
    known.eject(known.find("a"))


def test_repr_names_instance_and_address() -> None:
    assert repr(fleet("a").find("a")) == "<Endpoint orders/a at 10.0.0.98:8000>"


def test_one_that_is_ejected_as_its_mesh_is_closed_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known, lock, sort = fleet("a", "b"), Contended(), tiers.sort
    view = View(known.service, known, lambda _: None, timeout=0.0)
    other = threading.Thread(target=view.close)

    def met(*given: Any, **options: Any) -> tiers.Tiers:
        made = sort(*given, **options)
        if other.ident is None:
            other.start()
            eventually(lambda: lock.waited > 0 or not other.is_alive())
        return made

    monkeypatch.setattr("meshlib.balance.fleet.sort", met)
    monkeypatch.setattr(known, "_lock", lock)
    known.eject(known.find("a"))
    other.join(30)
    assert known.find("a").ejected is None
    assert names(known.tiers.prime) == ["a", "b"]
