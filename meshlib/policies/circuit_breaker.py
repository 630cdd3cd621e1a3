"""No calls for a while to what fails or is slow too often."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Final, TypeAlias

from meshlib.errors import AttemptError, CircuitOpen, ConfigError, DeadlineExceeded, NoInstances, Refused, StatusError
from meshlib.flow import FUNCTION, INCOMING, Call, Flow, Layer, Next
from meshlib.outcome import Outcome, of_answer, of_error, of_status
from meshlib.policies.base import LAYERS, Policy, Site
from meshlib.policies.breaker import Breaker, Condition
from meshlib.policies.breaker_listeners import Audience
from meshlib.policies.breaker_share import Share
from meshlib.policies.breaker_states import Permit
from meshlib.policies.breaker_window import Counts, CountWindow, TimeWindow, Window

log = logging.getLogger(__name__)

Failures: TypeAlias = "type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]"

MOST_CALLS: Final = 100_000
_PUSHBACK: Final = 429  # the first status that may be more than an answer


@dataclass(frozen=True)
class circuit_breaker(Policy):  # noqa: N801 - as users write it
    """Lets no calls through for a while when of those that ended in the last ``window`` seconds (or of the last ``calls``) the
    share ``failure_rate`` failed, or the share ``slow_rate`` took ``slow`` seconds or more; not before ``minimum`` ended.

    A call that is not let through gets :class:`~meshlib.errors.CircuitOpen`, at once. After ``open_for`` seconds ``probes``
    calls are let through, which the same rates judge: either all passes again, or it is open for ``growth`` times as long as
    before, at most ``longest`` seconds. A probe that has not ended after ``probe_for`` seconds makes room for another.

    A service fails by connection errors, time-outs and answers of 5xx; 429, 503 with ``Retry-After`` and what is cancelled
    count neither way. A function fails by exceptions, those of a call in it by the same table. ``failures`` (exception types,
    or a function of the exception) says which of them count as failures, instead of all; others then are answers.

    There is one circuit per service and method, which equal policies of one mesh share, and one for each function. Of a
    generator function, the call that makes the generator is seen, not what the generator does.

    ``listeners`` are pybreaker's. ``storage`` is one of pybreaker's, or a function that makes one for the name of a circuit
    (``"orders.Orders.fetch"``): what is open there is open for all who share it, a moment later. It is asked in the background,
    and never waited for. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "circuit_breaker"
    refuses: ClassVar[bool] = True

    failure_rate: float = 0.5
    _: KW_ONLY
    slow: float | None = None
    slow_rate: float = 1.0
    window: float = 10.0
    calls: int | None = None
    minimum: int = 10
    open_for: float = 5.0
    growth: float = 2.0
    longest: float = 60.0
    probes: int = 3
    probe_for: float = 30.0
    failures: Failures | None = None
    listeners: Sequence[Any] = field(default=(), hash=False)
    storage: Any = None

    def __post_init__(self) -> None:
        for name in ("failure_rate", "slow_rate"):
            self._check(name, 0.0, 1.0, "a share above 0, up to 1", 0.5)
        for name in ("window", "open_for", "longest", "probe_for"):
            self._check(name, 0.0, 86_400.0, "a number of seconds up to a day", 10.0)
        self._check("growth", 0.999, 100.0, "a factor from 1 to 100", 2.0)
        if self.slow is not None:
            self._check("slow", 0.0, 86_400.0, "a number of seconds up to a day", 1.0)
        for name, most in (("minimum", MOST_CALLS), ("probes", 1000), ("calls", MOST_CALLS)):
            value = getattr(self, name)
            if not (name == "calls" and value is None) and not (type(value) is int and 1 <= value <= most):
                raise _wrong(name, value, f"is not a whole number from 1 to {most}", 10)
        if self.calls is not None and self.minimum > self.calls:
            raise _wrong("minimum", self.minimum, f"is more than calls={self.calls}, so it would never open", self.calls)
        if self.longest < self.open_for:
            raise _wrong("longest", self.longest, f"is less than open_for={self.open_for}", self.open_for)
        self._check_plugs()

    def _check(self, name: str, above: float, most: float, what: str, example: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value <= most:
            raise _wrong(name, value, f"is not {what}", example)

    def _check_plugs(self) -> None:
        if self.failures is not None and not _says_which(self.failures):
            raise _wrong("failures", self.failures, "are neither exceptions nor a function of one", "OSError")
        try:
            object.__setattr__(self, "listeners", tuple(self.listeners))
        except TypeError:
            raise _wrong("listeners", self.listeners, "is no list", "[CountingListener()]") from None
        for each in self.listeners:
            if not callable(getattr(each, "state_change", None)):
                raise _wrong("listeners", each, "has no state_change(), as a listener has", "[CountingListener()]")
        if self.storage is not None and not callable(self.storage) and not hasattr(type(self.storage), "opened_at"):
            raise _wrong("storage", self.storage, "is no storage of pybreaker's", 'CircuitMemoryStorage("closed")')

    def bind(self, site: Site) -> Layer:
        return CircuitBreaker(self, site)

    def breaker_at(self, site: Site) -> Breaker:
        """The circuit of ``site``, which those of the same name with an equal policy share."""
        return site.commons.get(("circuit breaker", site.service, site.method, self), lambda: Breaker(self, site))

    def new_window(self, clock: Callable[[], float]) -> Window:
        """An empty one."""
        if self.calls is not None:
            return CountWindow(self.calls, self.minimum)
        return TimeWindow(self.window, self.minimum, clock)

    def too_bad(self, counts: Counts) -> bool:
        """Whether a closed circuit is to be opened."""
        return counts.calls >= self.minimum and self.too_many(counts)

    def too_many(self, counts: Counts) -> bool:
        """Whether the rates are too high."""
        return counts.failure_rate >= self.failure_rate or counts.slow_rate >= self.slow_rate

    def open_time(self, rounds: int) -> float:
        """Seconds for which it stays open after ``rounds`` of probes have failed."""
        return float(min(self.longest, self.open_for * self.growth ** min(rounds, 100)))


def _wrong(option: str, value: Any, problem: str, example: Any) -> ConfigError:
    return ConfigError(f"circuit_breaker({option}=)", f"{value!r:.40} {problem}", example=f"{option}={example}")


def _says_which(failures: Any) -> bool:
    if isinstance(failures, tuple):
        return bool(failures) and all(isinstance(each, type) and issubclass(each, Exception) for each in failures)
    return issubclass(failures, Exception) if isinstance(failures, type) else callable(failures)


class CircuitBreaker:
    """The layer."""

    def __init__(self, policy: circuit_breaker, site: Site) -> None:
        self._policy, self._site, self._clock = policy, site, site.clock
        self.breaker = policy.breaker_at(site)
        self._slow = policy.slow
        self._audience = Audience.of(self.breaker)
        self._share = Share.of(self.breaker)
        self._plain = self._audience is None and self._share is None
        self._brief = self._audience is None and policy.slow is None

    def __call__(self, call: Call, proceed: Next) -> Flow:
        phase = self.breaker.phase
        permit: Any = phase if self._plain and phase.passes else self._enter(call)
        begun = 0.0 if self._slow is None else self._clock()
        try:
            response = yield from proceed(call)
        except BaseException as problem:
            self._failed(call, permit, begun, problem)
            raise
        # What a function returned may have anything by that name.
        if self._brief and (call.method == FUNCTION or response.status_code < _PUSHBACK):
            permit.good()
        else:
            self._answered(call, permit, begun, response)
        return response

    def _enter(self, call: Call) -> Permit:
        if self._share is not None:
            self._share.attend()
        permit, wait = self.breaker.enter()
        if permit is None:
            raise self._refused(call, wait)
        if self._audience is not None:
            self._audience.before(call)
        return permit

    def _refused(self, call: Call, wait: float | None) -> CircuitOpen:
        breaker = self.breaker
        self._site.emit("circuit_breaker.refused", retry_after=wait)
        condition = breaker.condition
        again = "" if wait is None else f"; again in {wait:.3g} s"
        return CircuitOpen(f"the circuit of {breaker.name} is {condition.state}: {condition.counts}{again}",
                           retry_after=wait, service=call.target)  # fmt: skip

    def _answered(self, call: Call, permit: Permit, begun: float, response: Any) -> None:
        # What a function returns is an answer, whatever it is.
        outcome = Outcome.ANSWERED if call.method == FUNCTION else of_answer(response)
        self._tell(permit, outcome, begun, response)

    def _failed(self, call: Call, permit: Permit, begun: float, problem: BaseException) -> None:
        outcome = _of_problem(call, problem) if isinstance(problem, Exception) else Outcome.NOTHING
        if outcome is Outcome.FAILED and self._policy.failures is not None and not self._counts(problem):
            outcome = Outcome.ANSWERED
        self._tell(permit, outcome, begun, problem)

    def _tell(self, permit: Permit, outcome: Outcome, begun: float, what: Any) -> None:
        failed = outcome is Outcome.FAILED
        if not failed and outcome is not Outcome.ANSWERED:
            permit.nothing()
            return
        slow = self._slow is not None and self._clock() - begun >= self._slow
        if failed or slow:
            permit.bad(failed, slow)
        else:
            permit.good()
        if self._audience is not None:
            self._audience.after(failed, what)

    def _counts(self, problem: Any) -> bool:
        failures: Any = self._policy.failures
        if isinstance(failures, (type, tuple)):
            return isinstance(problem, failures)
        try:
            return bool(failures(problem))
        except Exception:  # somebody else's code
            log.exception("circuit_breaker(failures=) failed at %r: it counts as a failure", problem)
            return True

    def explain(self, call: Call) -> Condition:  # noqa: ARG002 - of whatever call
        """How the circuit stands."""
        return self.breaker.condition


def _of_problem(call: Call, problem: Exception) -> Outcome:
    """What an exception says of the service, the function or the app that was called."""
    if isinstance(problem, (Refused, NoInstances)):
        return Outcome.NOTHING
    if isinstance(problem, AttemptError):
        return of_error(problem)
    if isinstance(problem, StatusError):
        return of_status(problem.status, problem.retry_after is not None)
    if call.method == FUNCTION or INCOMING in call.extensions:
        return Outcome.FAILED
    # A service had the time when it was sent there: else there was none left to begin with.
    return Outcome.FAILED if isinstance(problem, DeadlineExceeded) and problem.instance is not None else Outcome.NOTHING


def breakers_of(function: Any) -> tuple[Breaker, ...]:
    """The circuits of a function under ``@circuit_breaker``, outermost first: to look at, and to open and close by hand."""
    return breakers_in(getattr(function, LAYERS, ()))


def breakers_in(layers: Sequence[Layer]) -> tuple[Breaker, ...]:
    """The circuits of ``layers``."""
    return tuple(layer.breaker for layer in layers if isinstance(layer, CircuitBreaker))
