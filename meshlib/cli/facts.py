"""What commands find: the documents of ``--json``. Their fields stay as they are; new ones may come.

``ok`` is not part of a document: it is false when the answer is no, which the exit code says.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

import msgspec

from meshlib.balance.explain import Candidate
from meshlib.client.explain import Destination, Explanation, Way
from meshlib.governance.document import Document
from meshlib.model import Instance, Snapshot

T = TypeVar("T", bound="Fact")


class Fact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are seconds since the epoch, ages and durations seconds."""

    @property
    def ok(self) -> bool:
        """False when the answer is no."""
        return True


class Problem(Fact):
    """An error: its ``kind`` is the name of its class, ``name``, ``source`` and ``example`` are those of a wrong setting or
    parameter, ``detail`` what was tried."""

    kind: str
    message: str
    name: str = ""
    source: str = ""
    example: str = ""
    detail: str = ""


class Failure(Fact):
    """The command came to nothing."""

    error: Problem


class Services(Fact):
    """The names of the services of ``namespace``."""

    registry: str
    namespace: str
    services: list[str]


class Listed(Fact):
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


class Instances(Fact):
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


class Change(Fact):
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


class Seen(Fact):
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


class Goal(Fact):
    """Where a call goes with the chance ``share``."""

    subset: str
    share: float
    candidates: list[Seen]

    @classmethod
    def of(cls, one: Destination) -> Goal:
        """That of ``one``."""
        return cls(subset=str(one.subset or ""), share=one.share, candidates=[Seen.of(each) for each in one.candidates])


class Through(Fact):
    """A call through one client: ``policies`` are the kinds in force, ``said`` what they would do with it."""

    method: str
    policies: list[str]
    said: list[str]
    destinations: list[Goal]

    @classmethod
    def of(cls, way: Way) -> Through:
        """That of ``way``."""
        goals = [Goal.of(each) for each in way.destinations]
        return cls(method=way.method, policies=[each.kind for each in way.policies], said=list(way.said), destinations=goals)


class Explained(Fact):
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


class Answered(Fact):
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


class Registered(Fact):
    """An instance that is listed as long as the command runs."""

    instance: Listed


class Told(Fact):
    """What became of a wish for an instance. ``how`` is "siblings" (its processes were told), "registry" (the registry takes
    it out by itself), or empty when neither was possible, which ``problem`` explains; ``seen`` is true when the registry
    listed it so before the command ended."""

    instance: str
    wish: str
    how: str
    seen: bool
    problem: str = ""


class Wishes(Fact):
    """Those of all instances that were meant."""

    told: list[Told]

    @property
    def ok(self) -> bool:
        """False when one could not be told, or is not seen to have heard."""
        return bool(self.told) and all(one.how and one.seen for one in self.told)


class PolicyNames(Fact):
    """The services that have a policy document, in all namespaces."""

    services: list[str]


class PolicyDocument(Fact):
    """A policy document as it is in force, or was put. ``content`` is the whole of it."""

    service: str
    version: int
    mode: str
    note: str
    max_age: float | None
    content: dict[str, Any]

    @classmethod
    def of(cls, one: Document) -> PolicyDocument:
        """That of ``one``."""
        return cls(service=one.service, version=one.version, mode=one.mode, note=one.note, max_age=one.max_age,
                   content=dict(one.content))  # fmt: skip


class Put(PolicyDocument):
    """A document that was put just now, or (``dry``) would have been."""

    dry: bool = False


class PastVersion(Fact):
    """A version of a document. ``put``: when."""

    version: int
    put: float
    mode: str
    note: str


class History(Fact):
    """The versions of a document that are kept, the newest first."""

    service: str
    versions: list[PastVersion]

    @property
    def ok(self) -> bool:
        """False when there are none."""
        return bool(self.versions)


class Difference(Fact):
    """Two versions of a document apart, as a unified diff; empty for none. With ``asked``, a difference is a no."""

    service: str
    diff: str
    asked: bool = False

    @property
    def ok(self) -> bool:
        """See the class."""
        return not (self.asked and self.diff)


class Missing(Fact):
    """There is no such thing."""

    missing: str

    @property
    def ok(self) -> bool:
        """It never is."""
        return False


class Applied(Fact):
    """What was to be done for one service: ``action`` is "create", "change", "unchanged" or "delete"; ``version`` the one now,
    after it was ``done``. ``problem`` says why it was not."""

    service: str
    action: str
    version: int
    diff: str
    done: bool
    problem: str = ""


class Plan(Fact):
    """Desired state and what became of it. With ``asked``, a plan with anything to do is a no."""

    dry: bool
    steps: list[Applied]
    asked: bool = False

    @property
    def ok(self) -> bool:
        """False when a step failed; see the class."""
        to_do = any(step.action != "unchanged" for step in self.steps)
        return not any(step.problem for step in self.steps) and not (self.asked and to_do)


class SnapshotFile(Fact):
    """A disk snapshot. ``age``: seconds since a registry confirmed it. ``problem`` says why it would not be used."""

    service: str
    path: str
    age: float | None
    instances: list[Listed]
    suspects: list[str]
    tombstones: dict[str, float]
    revision: str
    problem: str
    quarantined: bool


class SnapshotFiles(Fact):
    """Those of this state directory and registry. ``strict``: any problem is a no, else only that there are none."""

    directory: str
    registry: str
    files: list[SnapshotFile]
    strict: bool = False

    @property
    def ok(self) -> bool:
        """See the class."""
        return not any(one.problem for one in self.files) if self.strict else bool(self.files)


class Carried(Fact):
    """Snapshots that were exported, or imported."""

    done: str
    services: list[str]
    path: str


class Setting(Fact):
    """A setting in force. ``source``: "command line", "environment", "default"…"""

    name: str
    value: str
    source: str


class Checked(Fact):
    """A check of the doctor: ``verdict`` is "fine", "found" or "skipped"."""

    name: str
    verdict: str
    detail: str


class Found(Fact):
    """Something that is wrong: see :class:`meshlib.doctor.case.Finding`."""

    code: str
    level: str
    what: str
    hint: str


class Diagnosis(Fact):
    """What the doctor says."""

    settings: list[Setting]
    checks: list[Checked]
    findings: list[Found]

    @property
    def ok(self) -> bool:
        """False when anything was found."""
        return not self.findings


class Demonstrated(Fact):
    """What the demo came to: ``calls`` are those of each consumer by the provider that answered, ``table`` all of it as text."""

    held: bool
    problem: str
    seconds: float | None
    first_call_ms: float | None
    calls: dict[str, dict[str, int]]
    table: str

    @property
    def ok(self) -> bool:
        """False when something did not hold."""
        return self.held


def schema(kind: type[Fact]) -> dict[str, Any]:
    """The JSON Schema of the documents of ``kind``."""
    return msgspec.json.schema(kind)
