"""The truth that views are compared with: what was ever registered, and what the registry listed when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from meshlib.model import Instance, ServiceUrl

Listed = tuple[Instance, ...]


@dataclass
class Ledger:
    """Of one service. ``states`` are (time, what is listed from then on); times are the clock's seconds."""

    service: ServiceUrl
    clock: Callable[[], float]
    ever: dict[tuple[str, str, str], Instance] = field(default_factory=dict)
    states: list[tuple[float, Listed]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states.append((self.clock(), ()))

    def register(self, instance: Instance) -> None:
        """``instance`` will be offered to the registry now, whatever comes of it."""
        self.ever[instance.id, instance.generation, instance.status.value] = instance

    def note(self, instances: Iterable[Instance]) -> None:
        """The registry lists ``instances`` from now on (those of other services left out)."""
        mine = (one for one in instances if one.url.name == self.service)
        listed = tuple(sorted(mine, key=lambda one: one.id))
        if listed != self.now:
            self.states.append((self.clock(), listed))

    @property
    def now(self) -> Listed:
        """What the registry lists at this moment."""
        return self.states[-1][1]

    def between(self, start: float, end: float) -> Iterator[Listed]:
        """All that was listed at some time from ``start`` to ``end``."""
        until = float("inf")
        for since, listed in reversed(self.states):
            if since <= end and until >= start:
                yield listed
            until = since


class Leases:
    """A naive registry: id → instance and when its lease ends. For those whose storage the checker does not look into."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.held: dict[tuple[str, str], tuple[Instance, float]] = {}

    def put(self, instance: Instance, ttl: float) -> None:
        """Registered, or prolonged."""
        due = self.ledger.clock() + ttl
        self.held[str(instance.url.name), instance.id] = (instance, due)
        asyncio.get_running_loop().call_at(due, self.note)
        self.note()

    def remove(self, instance: Instance) -> None:
        """Deregistered."""
        self.held.pop((str(instance.url.name), instance.id), None)
        self.note()

    def clear(self) -> None:
        """All state is lost."""
        self.held.clear()
        self.note()

    def note(self) -> None:
        """Tell the ledger what is alive."""
        now = self.ledger.clock() + 1e-6  # a timer may come this much early
        self.held = {key: (one, due) for key, (one, due) in self.held.items() if due > now}
        self.ledger.note(one for one, _ in self.held.values())
