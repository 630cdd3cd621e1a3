"""One instance as this process sees it: the registry's facts, and what calls have found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from meshlib.model import Instance

UNMEASURED = float("nan")
"""The cost of an endpoint that has not answered yet: it compares as neither better nor worse than any other."""


class Reason(Enum):
    """Why an endpoint was taken out, and so what brings it back."""

    UNREACHABLE = "unreachable"
    """No connection, or it broke: until a probe connects."""
    HUNG = "hung"
    """It took a call and said nothing: until it answers a probe."""
    OUTLIER = "outlier"
    """It answers, but worse than the others: for a time that grows."""


@dataclass(frozen=True, slots=True, eq=False)
class Ejection:
    """That an endpoint is taken out: for ``seconds`` (an outlier), or until a probe has an answer."""

    reason: Reason
    seconds: float = 0.0


class Endpoint:
    """One generation of one instance, with its state in this process.

    ``in_flight`` holds the attempts under way (adding to and discarding from a set are atomic, so it needs no lock and a
    release that comes twice does no harm); ``failures`` counts failures since the last good answer, ``ejections`` those as
    an outlier that are not yet forgiven. ``cost``, and the ``latency`` in seconds as ``measured`` at a monotonic time
    (``provisional``: the next measurement replaces it), belong to the picker that learns them, ``recent`` to who judges it.
    ``joined`` is the monotonic time at which it was first listed, 0 for those there from the start.
    """

    __slots__ = ("_on_drained", "cost", "ejected", "ejections", "failures", "in_flight", "instance", "joined", "latency",
                 "measured", "provisional", "recent")  # fmt: skip

    def __init__(self, instance: Instance, *, joined: float = 0.0) -> None:
        self.instance, self.joined = instance, joined
        self.in_flight: set[object] = set()
        self.ejected: Ejection | None = None
        self.failures = self.ejections = 0
        self.cost, self.latency, self.measured, self.provisional = UNMEASURED, 0.0, 0.0, False
        self.recent: Any = None
        self._on_drained: Callable[[Endpoint], object] | None = None

    def release(self, attempt: object) -> None:
        """``attempt`` is over: its answer has been read, or there is none."""
        self.in_flight.discard(attempt)
        if self._on_drained is not None and not self.in_flight:
            self._on_drained(self)

    def retire(self, on_drained: Callable[[Endpoint], object]) -> None:
        """It is no longer listed: have ``on_drained`` called when nothing is in flight. Attempts that picked it just before
        may still come, so it can be called again."""
        self._on_drained = on_drained
        if not self.in_flight:
            on_drained(self)

    @property
    def retired(self) -> bool:
        """True once it is no longer listed."""
        return self._on_drained is not None

    def unmeasured(self) -> None:
        """What it took says nothing of what it takes now."""
        self.cost, self.latency = UNMEASURED, 0.0

    def forget(self) -> None:
        """In a child process: what the parent has in flight, and why it avoids the instance, is the parent's."""
        self.in_flight, self.ejected, self.recent = set(), None, None
        self.failures = self.ejections = 0

    def __repr__(self) -> str:
        state = f" {self.ejected.reason.value}" if self.ejected else ""
        return f"<Endpoint {self.instance.url} at {self.instance.netloc}{state}>"
