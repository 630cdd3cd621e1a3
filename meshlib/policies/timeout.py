"""One budget of time for a whole call, and a limit for each attempt inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from meshlib.deadline import earlier, inherited
from meshlib.errors import AttemptTimeout, ConfigError, DeadlineExceeded
from meshlib.flow import Call, Flow, Layer, Next
from meshlib.policies.base import Policy, Site

_YEAR = 366 * 86_400.0


@dataclass(frozen=True)
class timeout(Policy):  # noqa: N801
    """The call ends within ``seconds`` (float), pauses and all attempts included, and each attempt within ``attempt``.

    It stands in place of the client's own ``timeout`` (and ``MESH_TIMEOUT``), and never reaches beyond the deadline of the
    request that is being served. What is left goes to the instance in the header ``X-Mesh-Deadline``. A call that has no time
    left raises :class:`~meshlib.errors.DeadlineExceeded`; an attempt that is too slow
    :class:`~meshlib.errors.AttemptTimeout`, which ``retry`` repeats.

    On an ``async def`` function, what is too slow is cancelled. A blocking function cannot be interrupted: it is not begun
    when no time is left, and what is left bounds the calls made in it (:func:`meshlib.time_left`). A generator's items are not
    bounded, only its making.
    """

    kind: ClassVar[str] = "timeout"
    seconds: float
    attempt: float | None = None

    def __post_init__(self) -> None:
        _check("seconds", self.seconds, "timeout(2.0)")
        if self.attempt is not None:
            _check("attempt", self.attempt, "timeout(2.0, attempt=0.5)")
            if self.attempt > self.seconds:
                raise ConfigError("timeout(attempt=…)", f"{self.attempt} s is longer than the whole call's {self.seconds} s",
                                  example="timeout(2.0, attempt=0.5)")  # fmt: skip

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        clock, seconds, attempt = site.clock, float(self.seconds), self.attempt

        def layer(call: Call, proceed: Next) -> Flow:
            timed = call.alike()
            timed.deadline = earlier(clock() + seconds, inherited())
            timed.attempt_timeout = attempt
            try:
                return (yield from proceed(timed))
            except (AttemptTimeout, DeadlineExceeded):
                if timed.deadline is not None and clock() >= timed.deadline:
                    site.emit("timeout.exceeded", seconds=seconds)
                raise

        return layer


def _check(option: str, value: Any, example: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _YEAR:
        raise ConfigError(f"timeout({option}=…)", f"{value!r} is not a positive number of seconds", example=example)
