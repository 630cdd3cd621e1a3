"""What commands find: the documents of ``--json``. Their fields stay as they are; new ones may come.

``ok`` is not part of a document: it is false when the answer is no, which the exit code says.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

import msgspec

from meshlib.balance.explain import Candidate
from meshlib.client.explain import Destination, Explanation, Way
from meshlib.model import Instance, Snapshot

T = TypeVar("T", bound="Fact")


class Fact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are seconds since the epoch, ages and durations seconds."""

    @property
    def ok(self) -> bool:
        """False when the answer is no."""
        return True


class Problem(Fact, frozen=True):
    """An error: its ``kind`` is the name of its class, ``name``, ``source`` and ``example`` are those of a wrong setting or
    parameter, ``detail`` what was tried."""

    kind: str
    message: str
    name: str = ""
    source: str = ""
    example: str = ""
    detail: str = ""


class Failure(Fact, frozen=True):
    """The command came to nothing."""

    error: Problem


class Services(Fact, frozen=True):
    """The names of the services of ``namespace``."""

    registry: str
    namespace: str
    services: list[str]


class Listed(Fact, frozen=True):
    """One instance. ``suspect``: the registry no longer lists it, and nothing has confirmed it dead."""

    id: str
    service: str
    namespace: str
    host: str
    port: int
    scheme: str
    version: str
    zone: str
    weight: int
    labels: dict[str, str]
    status: str
    generation: str
    suspect: bool

    @classmethod
    def of(cls, one: Instance, suspects: frozenset[str] = frozenset()) -> Listed:
        """That of ``one``."""
        return cls(
            id=one.id, service=one.service, namespace=one.namespace, host=one.host, port=one.port, scheme=one.scheme,
            version=one.version, zone=one.zone, weight=one.weight, labels=dict(one.labels), status=one.status.value,
            generation=one.generation, suspect=one.id in suspects,
        )  # fmt: skip


class Instances(Fact, frozen=True):
    """What is known of a service. ``source`` is "registry", "disk", or empty for nothing; ``live`` is false when no registry
    confirms it now, and ``problem`` says why."""

    service: str
    live: bool
    problem: str
    source: str
    age: float | None
    revision: str
    instances: list[Listed]

    @property
    def ok(self) -> bool:
        """False when nobody is listed."""
        return bool(self.instances)

    @classmethod
    def of(cls, service: str, snapshot: Snapshot | None, *, live: bool, problem: str) -> Instances:
        """Those of ``snapshot``."""
        if snapshot is None:
            return cls(service=service, live=live, problem=problem, source="", age=None, revision="", instances=[])
        return cls(
            service=service, live=live, problem="" if live else problem, source=snapshot.source,
            age=snapshot.age(time.time()), revision=snapshot.revision,
            instances=[Listed.of(one, snapshot.suspects) for one in snapshot.instances],
        )  # fmt: skip


class Change(Fact, frozen=True):
    """What became of a service at ``at``: whoever was ``added``, ``removed`` (ids) and ``changed``; ``count`` are there now."""

    at: float
    service: str
    live: bool
    problem: str
    source: str
    added: list[Listed]
    removed: list[str]
    changed: list[Listed]
    count: int


class Seen(Fact, frozen=True):
    """An instance as a call sees it: see :class:`meshlib.balance.explain.Candidate`."""

    instance: Listed
    tier: str
    eligible: bool
    dropped: list[str]
    latency: float | None
    score: float | None
    in_flight: int
    failures: int

    @classmethod
    def of(cls, one: Candidate) -> Seen:
        """That of ``one``."""
        return cls(
            instance=Listed.of(one.instance), tier=one.tier, eligible=one.eligible, dropped=list(one.dropped),
            latency=one.latency, score=one.score, in_flight=one.in_flight, failures=one.failures,
        )  # fmt: skip


class Goal(Fact, frozen=True):
    """Where a call goes with the chance ``share``."""

    subset: str
    share: float
    candidates: list[Seen]

    @classmethod
    def of(cls, one: Destination) -> Goal:
        """That of ``one``."""
        return cls(subset=str(one.subset or ""), share=one.share, candidates=[Seen.of(each) for each in one.candidates])


class Governing(Fact, frozen=True):
    """The policy document that governs a client: see :class:`meshlib.policies.overlay.Origin`."""

    version: int
    source: str
    mode: str
    text: str


class Through(Fact, frozen=True):
    """A call through one client: ``policies`` are the kinds in force, ``said`` what they would do with it, ``document`` the one
    that has to do with them."""

    method: str
    policies: list[str]
    said: list[str]
    destinations: list[Goal]
    document: Governing | None

    @classmethod
    def of(cls, way: Way) -> Through:
        """That of ``way``."""
        goals, one = [Goal.of(each) for each in way.destinations], way.origin
        document = None if one is None else Governing(version=one.version, source=one.source, mode=one.mode, text=str(one))
        kinds = [each.kind for each in way.policies]
        return cls(method=way.method, policies=kinds, said=list(way.said), destinations=goals, document=document)


class Explained(Fact, frozen=True):
    """What would become of a call. ``text`` says it for people."""

    service: str
    call: str
    live: bool
    problem: str
    age: float | None
    ways: list[Through]
    text: str

    @property
    def ok(self) -> bool:
        """False when it would go nowhere."""
        return any(seen.eligible for way in self.ways for goal in way.destinations for seen in goal.candidates)

    @classmethod
    def of(cls, one: Explanation) -> Explained:
        """That of ``one``."""
        return cls(
            service=str(one.service), call=one.call, live=one.live, problem=one.problem, age=one.age,
            ways=[Through.of(way) for way in one.ways], text=str(one),
        )  # fmt: skip


class Answered(Fact, frozen=True):
    """The answer to a call. ``body`` is text, or base64 where it is none (then ``base64`` is true)."""

    service: str
    method: str
    path: str
    status: int
    seconds: float
    instance: str
    address: str
    headers: list[tuple[str, str]]
    body: str
    base64: bool
    explanation: Explained | None = None

    @property
    def ok(self) -> bool:
        """False for an error status."""
        return self.status < 400


class Registered(Fact, frozen=True):
    """An instance that is listed as long as the command runs."""

    instance: Listed


class Told(Fact, frozen=True):
    """What became of a wish for an instance. ``how`` is "siblings" (its processes were told), "registry" (the registry takes
    it out by itself), or empty when neither was possible, which ``problem`` explains; ``seen`` is true when the registry
    listed it so before the command ended."""

    instance: str
    wish: str
    how: str
    seen: bool
    problem: str = ""


class Wishes(Fact, frozen=True):
    """Those of all instances that were meant."""

    told: list[Told]

    @property
    def ok(self) -> bool:
        """False when one could not be told, or is not seen to have heard."""
        return bool(self.told) and all(one.how and one.seen for one in self.told)


def schema(kind: type[Fact]) -> dict[str, Any]:
    """The JSON Schema of the documents of ``kind``."""
    return msgspec.json.schema(kind)
