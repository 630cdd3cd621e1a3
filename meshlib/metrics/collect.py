"""Everything that can be told of a mesh, put together when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from meshlib.metrics import client, server
from meshlib.metrics.families import Family, Metrics, Sample, labelled


class Metered:
    """What a mesh records: its ``calls`` and the ``requests`` that it serves."""

    def __init__(self) -> None:
        self.calls, self.requests = client.recorder(), server.recorder()

    def forked(self) -> None:
        """In a child process."""
        self.calls.forked()
        self.requests.forked()


class Counting(Protocol):
    """What counts events: :class:`meshlib.events.Events`."""

    def counts(self) -> dict[tuple[str, str, str], int]: ...


def collected(
    metered: Metered | None, events: Counting, views: Iterable[Any], registrations: Sequence[Any], in_flight: int
) -> Metrics:
    """The families of a mesh: ``views`` are its :class:`~meshlib.discovery.view.View`, ``registrations`` its
    :class:`~meshlib.lifecycle.Registration`, ``in_flight`` the requests that it serves now."""
    recorded = () if metered is None else (*client.families(metered.calls), server.family(metered.requests))
    ordered = sorted(views, key=lambda view: str(view.service))
    return Metrics((*recorded, _events(events), *_of_views(ordered), *_of_provider(registrations, in_flight)))


def _events(events: Counting) -> Family:
    names = ("kind", "service.peer.name", "meshlib.method")
    samples = tuple(Sample(labelled(names, key), count) for key, count in sorted(events.counts().items()))
    return Family("meshlib.policy.events", "counter", "What policies did, by its kind.", samples=samples)


def _gauge(name: str, help: str, samples: Iterable[Sample], unit: str = "") -> Family:
    return Family(name, "gauge", help, unit, tuple(samples))


_SERVICE: Final = "service.peer.name"


def _of_views(views: Sequence[Any]) -> Iterable[Family]:
    wall = time.time()
    known = [(view, view.snapshot) for view in views]
    yield _gauge("meshlib.instances", "Instances that are known, by how they may be called.", (
        Sample({_SERVICE: str(view.service), "state": state}, count)
        for view in views for state, count in _states(view.fleet).items()
    ))  # fmt: skip
    yield _gauge("meshlib.snapshot.age", "Time since a registry has confirmed what is known.", (
        Sample({_SERVICE: str(view.service)}, max(0.0, snapshot.age(wall))) for view, snapshot in known if snapshot is not None
    ), "s")  # fmt: skip
    yield _gauge("meshlib.view.live", "1 while a registry tells what changes.",
                 (Sample({_SERVICE: str(view.service)}, int(view.live)) for view in views))  # fmt: skip
    yield Family("http.client.active_requests", "updowncounter", "Attempts under way, until their answers are read.", "", tuple(
        Sample({_SERVICE: str(view.service)}, sum(len(each.in_flight) for each in view.fleet.endpoints())) for view in views
    ))  # fmt: skip


def _states(fleet: Any) -> dict[str, int]:
    tiers = fleet.tiers
    return {
        "known": len(fleet.endpoints()), "prime": len(tiers.prime), "reserve": len(tiers.reserve),
        "outlier": len(tiers.outliers), "ejected": len(tiers.ejected),
    }  # fmt: skip


def _of_provider(registrations: Sequence[Any], in_flight: int) -> Iterable[Family]:
    yield Family("http.server.active_requests", "updowncounter", "Requests being served.", "", (Sample({}, in_flight),))
    made = [each.instance for each in list(registrations)]
    yield _gauge("meshlib.registrations", "Entries of this process in the registry, by their state.", (
        Sample({"state": state}, sum((one is not None) is accepted for one in made))
        for state, accepted in (("accepted", True), ("waiting", False))
    ))  # fmt: skip
