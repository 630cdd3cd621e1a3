"""What a picker is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.tiers import Pool
from meshlib.flow import Call
from meshlib.outcome import Outcome

Choose: TypeAlias = Callable[[Call], Endpoint]
Picker: TypeAlias = Callable[[Pool], Choose]


@runtime_checkable
class Learner(Protocol):
    """A picker that wants to know how attempts end."""

    def __call__(self, pool: Pool) -> Choose: ...

    def observe(self, endpoint: Endpoint, seconds: float, outcome: Outcome, now: float) -> None:
        """An attempt at ``endpoint`` ended at monotonic time ``now``, after ``seconds``. Called by any thread."""
        ...
