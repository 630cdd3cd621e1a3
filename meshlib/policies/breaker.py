"""One circuit: asked before, told after, and changed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from meshlib.policies.base import Site
from meshlib.policies.breaker_states import Closed, Disabled, Entry, HalfOpen, Open, Phase
from meshlib.policies.breaker_window import Counts
from meshlib.policies.forks import on_fork
from meshlib.threads import lock

if TYPE_CHECKING:
    from meshlib.policies.circuit_breaker import circuit_breaker


class Attached(Protocol):
    """What goes with a circuit and hears of its changes: listeners, a storage."""

    def changed(self, before: Phase, after: Phase, adopted: bool) -> None:
        """The state is another; ``adopted`` when another process brought it."""
        ...


A = TypeVar("A", bound=Attached)


@dataclass(frozen=True, slots=True)
class Condition:
    """How a circuit stands. ``state`` is ``"closed"``, ``"open"``, ``"half-open"`` or ``"disabled"``; ``counts`` are those of
    the window, of an open circuit those it was opened for, of a half-open one those of the probes that ended; ``retry_after``
    the seconds until an open one lets probes through, None where nobody knows."""

    state: str
    counts: Counts
    retry_after: float | None = None

    def __str__(self) -> str:
        until = "" if self.retry_after is None else f" for another {self.retry_after:.3g} s"
        return f"{self.state}{until}, {self.counts}"


class Breaker:
    """One circuit: of a method of a service as one mesh calls it, or of a function.

    An open circuit whose time is over is half-open as soon as somebody calls. :meth:`open`, :meth:`close`, :meth:`disable` and
    :meth:`enable` are for operators; all of it is safe for threads.
    """

    def __init__(self, policy: circuit_breaker, site: Site) -> None:
        self.policy, self.site, self.clock = policy, site, site.clock
        self._attached: dict[type, Any] = {}
        self._lock = lock()
        self.phase: Phase = Closed(self)
        on_fork(self)

    @property
    def service(self) -> str:
        """The service, or the module of a function."""
        return self.site.service

    @property
    def method(self) -> str:
        """The declared method (``"Orders.fetch"``, empty for clients without), or the function."""
        return self.site.method

    @property
    def name(self) -> str:
        """Both in one."""
        return f"{self.service}.{self.method}" if self.method else self.service

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"``, ``"half-open"`` or ``"disabled"``."""
        return self.phase.name

    @property
    def condition(self) -> Condition:
        """The state with its counts and rates."""
        phase = self.phase
        retry_after = None
        if isinstance(phase, Open) and phase.until < math.inf:
            retry_after = max(0.0, phase.until - self.clock())
        return Condition(phase.name, phase.counts(), retry_after)

    def __repr__(self) -> str:
        return f"<circuit of {self.name}: {self.condition}>"

    def attached(self, kind: type[A], make: Callable[[], A]) -> A:
        """The ``kind`` of thing that goes with this circuit, made by the first who asks."""
        with self._lock:
            found = self._attached.get(kind)
            if found is None:
                found = self._attached[kind] = make()
            return found

    def enter(self) -> Entry:
        """Ask for one call."""
        return self.phase.enter(self.clock())

    # -- by hand

    def open(self, seconds: float | None = None) -> None:
        """Let nothing through for ``seconds`` (None: until it is closed, disabled or enabled)."""
        until = math.inf if seconds is None else self.clock() + seconds
        self._switch(None, Open(self, until, 0, self.phase.counts(), held=True))

    def close(self) -> None:
        """Let everything through, and begin to count anew."""
        self._switch(None, Closed(self))

    def disable(self) -> None:
        """Let everything through, and count nothing, until it is enabled, opened or closed."""
        self._switch(None, Disabled())

    def enable(self) -> None:
        """End what :meth:`open` or :meth:`disable` said. A circuit that goes by itself stays as it is."""
        phase = self.phase
        if isinstance(phase, Disabled) or (isinstance(phase, Open) and phase.held):
            self._switch(phase, Closed(self))

    # -- by what happens

    def to_open(self, old: Phase, rounds: int, counts: Counts) -> None:
        """Too many calls or probes were bad, of ``old``."""
        until = self.clock() + self.policy.open_time(rounds)
        self._switch(old, Open(self, until, rounds, counts))

    def to_half_open(self, old: Open) -> Phase:
        """The time of ``old`` is over. Returns what the state is now."""
        self._switch(old, HalfOpen(self, old.rounds))
        return self.phase

    def to_closed(self, old: HalfOpen) -> None:
        """Enough probes of ``old`` were good: the growth of the open time is forgotten."""
        self._switch(old, Closed(self))

    def adopt(self, old: Phase, until: float | None) -> None:
        """Another process opened it, until ``until`` on our clock, or closed it (None), while ours was ``old``."""
        new = Closed(self) if until is None else Open(self, until, getattr(old, "rounds", 0), old.counts())
        self._switch(old, new, adopted=True)

    def _switch(self, old: Phase | None, new: Phase, *, adopted: bool = False) -> None:
        """Make ``new`` the state, if it is still ``old`` (None: whatever it is); then say so, outside of the lock."""
        with self._lock:
            before = self.phase
            if old is not None and before is not old:
                return
            self.phase = new
        if before.name != new.name or new.name == "open":
            self.site.emit(f"circuit_breaker.{_VERBS[new.name]}", **self._detail(before, new, adopted))
            for each in list(self._attached.values()):
                each.changed(before, new, adopted)

    def _detail(self, before: Phase, new: Phase, adopted: bool) -> dict[str, Any]:
        detail: dict[str, Any] = {"before": before.name}
        if isinstance(new, Open):
            counts = new.counts()
            seconds = None if new.until == math.inf else new.until - self.clock()
            detail |= {"seconds": seconds, "calls": counts.calls, "failures": counts.failures, "slow": counts.slow}
        return detail | ({"adopted": True} if adopted else {})

    def forked(self) -> None:
        """In a child process."""
        self._lock = lock()
        self.phase.forked()


_VERBS: Final = {"closed": "closed", "open": "opened", "half-open": "half_open", "disabled": "disabled"}
