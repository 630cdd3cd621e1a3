"""One budget of time for a whole call, and a limit for each attempt inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from meshlib.deadline import earlier, inherited
from meshlib.errors import AttemptTimeout, CallError, ConfigError, DeadlineExceeded
from meshlib.fields import doubt
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
        doubt("timeout(seconds=…)", self.seconds)
        if self.attempt is not None:
            _check("attempt", self.attempt, "timeout(2.0, attempt=0.5)")
            if self.attempt > self.seconds:
                raise ConfigError("timeout(attempt=…)", f"{self.attempt} s is longer than the whole call's {self.seconds} s",
                                  example="timeout(2.0, attempt=0.5)")  # fmt: skip

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        return Timeout(self, site)


@dataclass(frozen=True)
class TimeoutState:
    """The call would end within ``seconds``, as the rule says or the request that is served here (``inherited``), and each
    attempt within ``attempt``."""

    seconds: float
    attempt: float | None
    inherited: bool

    def __str__(self) -> str:
        attempt = "" if self.attempt is None else f", {self.attempt:.3g} s for each attempt"
        return f"{self.seconds:.3g} s{', what the request being served has left' if self.inherited else ''}{attempt}"


class Timeout:
    """The layer."""

    def __init__(self, rule: timeout, site: Site) -> None:
        self._site, self._clock = site, site.clock
        self._seconds, self._attempt = float(rule.seconds), rule.attempt

    def __call__(self, call: Call, proceed: Next) -> Flow:
        timed = call.alike()
        timed.deadline = earlier(self._clock() + self._seconds, inherited())
        timed.attempt_timeout = self._attempt
        try:
            return (yield from proceed(timed))
        except CallError as problem:
            if timed.deadline is not None:
                problem.left = timed.deadline - self._clock()
                if problem.left <= 0 and isinstance(problem, (AttemptTimeout, DeadlineExceeded)):
                    self._site.emit("timeout.exceeded", seconds=self._seconds)
            raise

    def explain(self, call: Call) -> TimeoutState:  # noqa: ARG002 - its own deadline does not hold
        """How long a call would have now."""
        now, served = self._clock(), inherited()
        narrower = served is not None and served - now < self._seconds
        left = max(0.0, served - now) if served is not None and narrower else self._seconds
        return TimeoutState(left, self._attempt, narrower)


def _check(option: str, value: Any, example: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _YEAR:
        raise ConfigError(f"timeout({option}=…)", f"{value!r} is not a positive number of seconds", example=example)
