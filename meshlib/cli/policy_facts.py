"""What commands find of policy documents; see :mod:`meshlib.cli.facts`."""

from __future__ import annotations

from typing import Any

from meshlib.cli.facts import Fact
from meshlib.governance.document import Document


class PolicyNames(Fact, frozen=True):
    """The services that have a policy document, in all namespaces."""

    services: list[str]


class PolicyDocument(Fact, frozen=True):
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


class Put(PolicyDocument, frozen=True):
    """A document that was put just now, or (``dry``) would have been."""

    dry: bool = False


class PastVersion(Fact, frozen=True):
    """A version of a document. ``put``: when."""

    version: int
    put: float
    mode: str
    note: str


class History(Fact, frozen=True):
    """The versions of a document that are kept, the newest first."""

    service: str
    versions: list[PastVersion]

    @property
    def ok(self) -> bool:
        """False when there are none."""
        return bool(self.versions)


class Difference(Fact, frozen=True):
    """Two versions of a document apart, as a unified diff; empty for none. With ``asked``, a difference is a no."""

    service: str
    diff: str
    asked: bool = False

    @property
    def ok(self) -> bool:
        """See the class."""
        return not (self.asked and self.diff)


class Missing(Fact, frozen=True):
    """There is no such thing."""

    missing: str

    @property
    def ok(self) -> bool:
        """It never is."""
        return False


class Applied(Fact, frozen=True):
    """What was to be done for one service: ``action`` is "create", "change", "unchanged" or "delete"; ``version`` the one now,
    after it was ``done``. ``problem`` says why it was not."""

    service: str
    action: str
    version: int
    diff: str
    done: bool
    problem: str = ""


class Plan(Fact, frozen=True):
    """Desired state and what became of it. With ``asked``, a plan with anything to do is a no."""

    dry: bool
    steps: list[Applied]
    asked: bool = False

    @property
    def ok(self) -> bool:
        """False when a step failed; see the class."""
        to_do = any(step.action != "unchanged" for step in self.steps)
        return not any(step.problem for step in self.steps) and not (self.asked and to_do)
