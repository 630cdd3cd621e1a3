"""What commands find of a setup: disk snapshots, the doctor, the demo; see :mod:`meshlib.cli.facts`."""

from __future__ import annotations

from meshlib.cli.facts import Fact, Listed


class SnapshotFile(Fact, frozen=True):
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


class SnapshotFiles(Fact, frozen=True):
    """Those of this state directory and registry. ``strict``: any problem is a no, else only that there are none."""

    directory: str
    registry: str
    files: list[SnapshotFile]
    strict: bool = False

    @property
    def ok(self) -> bool:
        """See the class."""
        return not any(one.problem for one in self.files) if self.strict else bool(self.files)


class Carried(Fact, frozen=True):
    """Snapshots that were exported, or imported."""

    done: str
    services: list[str]
    path: str


class Setting(Fact, frozen=True):
    """A setting in force. ``source``: "command line", "environment", "default"…"""

    name: str
    value: str
    source: str


class Checked(Fact, frozen=True):
    """A check of the doctor: ``verdict`` is "fine", "found" or "skipped"."""

    name: str
    verdict: str
    detail: str


class Found(Fact, frozen=True):
    """Something that is wrong: see :class:`meshlib.doctor.case.Finding`."""

    code: str
    level: str
    what: str
    hint: str


class Diagnosis(Fact, frozen=True):
    """What the doctor says."""

    settings: list[Setting]
    checks: list[Checked]
    findings: list[Found]

    @property
    def ok(self) -> bool:
        """False when anything was found."""
        return not self.findings


class Demonstrated(Fact, frozen=True):
    """What the demo came to: ``calls`` are those of each consumer by who answered, ``table`` is all of it as text."""

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


class Part(Fact, frozen=True):
    """A health check: its ``status`` is "UP", "DOWN" or another of Spring's, ``why`` says why it is not up."""

    name: str
    status: str
    why: str
    details: dict[str, str]


class Health(Fact, frozen=True):
    """All checks of an app."""

    parts: list[Part]

    @property
    def ok(self) -> bool:
        """False when one fails."""
        return all(one.status != "DOWN" for one in self.parts)
