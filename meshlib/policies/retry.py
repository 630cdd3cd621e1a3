"""Try again: elsewhere, later, and no more than the budget allows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from meshlib.deadline import inherited
from meshlib.errors import AttemptError, CallError, ConfigError, DeadlineExceeded, MeshError, StatusError
from meshlib.flow import FUNCTION, IDEMPOTENCY_KEY, IDEMPOTENT, Call, Close, Flow, Layer, Next, Sleep, tried_instances
from meshlib.outcome import retry_after
from meshlib.policies.base import Policy, Site
from meshlib.policies.budget import BUDGET, RetryBudget, checked_budget, spending

if TYPE_CHECKING:
    import tenacity

    from meshlib.balance.endpoint import Endpoint

PATIENCE: Final = 30.0
"""Seconds of ``Retry-After`` beyond which a call without a deadline does not wait."""

_NEED_NO_KEY: Final = IDEMPOTENT | {FUNCTION}
_FIRST_ERROR: Final = 400
_TOO_MANY: Final = 429
_DOUBLINGS: Final = 30  # enough for any cap


@dataclass(frozen=True)
class retry(Policy):  # noqa: N801
    """A call that failed is tried again, up to ``attempts`` times in all (default 3; no limit of its own beside ``stop``).

    What failed: no connection or a lost one, an attempt that took too long, an answer of one of ``statuses``, or of 429 with
    ``Retry-After``. Of a function: any exception, save our own refusals and mistakes in its settings. What may have been
    received is repeated only if the method is idempotent or the request has an ``Idempotency-Key``; with ``idempotency_key``,
    POST and PATCH get one, the same for all attempts.

    Another attempt goes to an instance that was not tried, after a pause drawn from 0 to ``base`` seconds, twice as much after
    each (full jitter), at most ``cap``; not before ``Retry-After`` has passed, and not at all when the deadline would pass
    before. How much is repeated is bounded by ``budget`` (None: by nothing).

    ``stop``, ``wait`` and ``retry`` are tenacity's objects (or functions of its ``RetryCallState``), in place of the defaults;
    ``stop`` holds beside ``attempts`` where both are given. The last answer is returned as it is, the last error is raised
    with a note of each attempt before.
    """

    kind: ClassVar[str] = "retry"
    attempts: int | None = None
    stop: Callable[[tenacity.RetryCallState], bool] | None = field(default=None, kw_only=True)
    wait: Callable[[tenacity.RetryCallState], float] | None = field(default=None, kw_only=True)
    retry: Callable[[tenacity.RetryCallState], bool] | None = field(default=None, kw_only=True)
    statuses: Iterable[int] = field(default=(502, 503, 504), kw_only=True)
    base: float = field(default=0.05, kw_only=True)
    cap: float = field(default=2.0, kw_only=True)
    idempotency_key: bool = field(default=False, kw_only=True)
    budget: RetryBudget | None = field(default=BUDGET, kw_only=True)

    def __post_init__(self) -> None:
        if self.attempts is not None and (type(self.attempts) is not int or not 1 <= self.attempts <= 1000):
            raise ConfigError(
                "retry(attempts=…)", f"{self.attempts!r} is not a number from 1 to 1000", example="retry(attempts=3)"
            )
        for option in ("stop", "wait", "retry"):
            value = getattr(self, option)
            if value is not None and not callable(value):
                raise ConfigError(
                    f"retry({option}=…)", f"{value!r:.60} is not one of tenacity's objects", example=_EXAMPLES[option]
                )
        for option in ("base", "cap"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3600:
                raise ConfigError(f"retry({option}=…)", f"{value!r} is not a pause in seconds", example=f"{option}=0.1")
        object.__setattr__(self, "statuses", _statuses(self.statuses))
        checked_budget("retry", self.budget)

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        return _Retry(self, site)


_EXAMPLES: Final = {
    "stop": "stop=tenacity.stop_after_delay(10)", "wait": "wait=tenacity.wait_fixed(1)",
    "retry": "retry=tenacity.retry_if_exception_type(ConnectionLost)",
}  # fmt: skip


def _statuses(given: Any) -> tuple[int, ...]:
    try:
        found = tuple(sorted(set(given)))
    except TypeError:
        found = (0,)
    for status in found:
        if type(status) is not int or not _FIRST_ERROR <= status <= 599:
            raise ConfigError(
                "retry(statuses=…)", f"{given!r:.60} is not a list of error statuses", example="statuses=[502, 503]"
            )
    return found


@dataclass(frozen=True)
class RetryState:
    """Up to ``attempts`` in all (None: no limit of their own), if the call ``may`` be repeated once it was sent; and how many
    attempts are ``left`` in the budget (None: there is none)."""

    attempts: int | None
    may: bool
    left: int | None

    def __str__(self) -> str:
        attempts = "any number of attempts" if self.attempts is None else f"{self.attempts} attempts"
        may = "" if self.may else ", once it was sent only one"
        return f"{attempts}{may}; {'no budget' if self.left is None else f'the budget has {self.left} left'}"


class _Retry:
    """The layer. It costs a copy and a count as long as calls succeed."""

    def __init__(self, rule: retry, site: Site) -> None:
        self.rule, self.site = rule, site
        self.spending = spending(rule.budget, site)
        self.attempts = rule.attempts or (3 if rule.stop is None else None)
        self._called, self._clock, self._key = self.spending.called, site.clock, rule.idempotency_key
        self._any_answer = rule.retry is not None and not _of_errors_only(rule.retry)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        begun = self._clock()
        self._called(begun)
        if self._key and call.method not in _NEED_NO_KEY and not call.keyed:
            call = _with_key(call)
        visited: list[Endpoint] = [] if call.visited is None else call.visited
        trouble: _Trouble | None = None
        while True:
            attempt = call.apart(visited)
            try:
                response = yield from proceed(attempt)
            except Exception as problem:
                attempt.close()
                trouble = trouble or _Trouble(self, call, visited, begun)
                pause = trouble.after(problem, None)
                if pause is None:
                    raise
            except BaseException:
                attempt.close()
                raise
            else:
                call.adopt(attempt)  # before the answer is judged, which may be somebody else's code, and fail
                pause = None
                if self._any_answer or (_is_answer(call, response) and response.status_code >= _FIRST_ERROR):
                    trouble = trouble or _Trouble(self, call, visited, begun)
                    pause = trouble.after(None, response)
                if pause is None:
                    return response
                try:
                    yield Close(response)
                finally:
                    attempt.close()
            if pause:
                yield Sleep(pause)

    def explain(self, call: Call) -> RetryState:
        """How often ``call`` would be tried."""
        return RetryState(self.attempts, call.method == FUNCTION or call.idempotent or self._key, self.spending.left())


def _of_errors_only(condition: Any) -> bool:
    """Whether it is one of tenacity's that no answer meets, so that good ones need not be shown to it."""
    tenacity = sys.modules.get("tenacity")  # if it is not there, the condition is none of its objects
    return tenacity is not None and type(condition) in (tenacity.retry_if_exception, tenacity.retry_if_exception_type)


def _with_key(call: Call) -> Call:
    import uuid  # noqa: PLC0415 - few need it

    keyed = call.alike()
    keyed.headers = [*call.headers, (IDEMPOTENCY_KEY, b'"%b"' % str(uuid.uuid4()).encode())]  # a string of RFC 9651
    return keyed


class _Trouble:
    """One call of which an attempt failed: whether and when to make another."""

    def __init__(self, layer: _Retry, call: Call, visited: list[Endpoint], begun: float) -> None:
        self._layer, self._rule, self._site = layer, layer.rule, layer.site
        self._call, self._visited, self._begun = call, visited, begun
        self._number, self._notes = 0, list[str]()
        self._state: Any = None

    def after(self, problem: Exception | None, response: Any) -> float | None:
        """The pause in seconds before the next attempt, after one that failed with ``problem`` or was answered with
        ``response``; None when that is what the caller gets."""
        self._number += 1
        now = self._layer._clock()
        try:
            pause = self._pause(problem, response, now)
        finally:
            if self._state is not None:
                self._state.outcome = None  # its traceback leads here: no cycle
        if pause is None:
            self._tell(problem)
        return pause

    def _pause(self, problem: Exception | None, response: Any, now: float) -> float | None:
        if not self._safe(problem) or not self._failed(problem, response, now):
            return None
        asked = _asked(self._call, problem, response, self._site)
        pause = max(self._wait(), asked)
        why = self._why_not(pause, asked, now)
        if why:
            self._site.emit("retry.gave_up", why=why, attempts=self._number)
            self._notes.append(f"no further attempt: {why}")
            return None
        what = f"answered {response.status_code}" if _is_answer(self._call, response) else repr(problem or response)
        self._notes.append(f"attempt {self._number}{self._where()}: {what:.200}; again after {pause:.3g} s")
        self._site.emit("retry.again", attempt=self._number, pause=pause, what=what)
        return pause

    def _safe(self, problem: Exception | None) -> bool:
        unsent = isinstance(problem, AttemptError) and problem.unsent
        return unsent or self._call.method == FUNCTION or self._call.idempotent

    def _failed(self, problem: Exception | None, response: Any, now: float) -> bool:
        rule = self._rule
        if rule.stop or rule.wait or rule.retry:
            self._record(problem, response, now)
        if rule.retry is not None:
            return _again(problem) or bool(rule.retry(self._state))
        if problem is not None:
            return _is_failure(self._call, problem, rule.statuses)
        return _is_answer(self._call, response) and _is_bad(
            response.status_code, retry_after(response, wall=self._site.wall), rule.statuses
        )

    def _record(self, problem: Exception | None, response: Any, now: float) -> None:
        from tenacity import Future, RetryCallState  # noqa: PLC0415 - after a first failure only

        if self._state is None:
            args, kwargs = self._call.body if self._call.method == FUNCTION else ((), {})
            # Of the object that drives tenacity's own loop, its stop, wait and retry objects use nothing.
            self._state = RetryCallState(None, None, args, kwargs)  # type: ignore[arg-type]
            self._state.start_time = self._begun
        self._state.attempt_number = self._number
        self._state.outcome, self._state.outcome_timestamp = Future(self._number), now
        if problem is None:
            self._state.outcome.set_result(response)
        else:
            self._state.outcome.set_exception(problem)

    def _wait(self) -> float:
        rule = self._rule
        if rule.wait is None:
            return self._site.uniform() * min(rule.cap, rule.base * 2.0 ** min(self._number - 1, _DOUBLINGS))
        return max(0.0, float(rule.wait(self._state)))

    def _why_not(self, pause: float, asked: float, now: float) -> str:
        """Why there is no further attempt, though this one failed; nothing if there is one. The budget comes last: what is
        taken from it is spent."""
        call, stop = self._call, self._rule.stop
        if self._layer.attempts is not None and self._number >= self._layer.attempts:
            return f"{self._number} were made"
        deadline = call.deadline if call.deadline is not None else inherited()
        if deadline is not None and now + pause >= deadline:
            return f"the deadline is {max(0.0, deadline - now):.3g} s away, the pause would be {pause:.3g} s"
        if deadline is None and asked > PATIENCE:
            return f"Retry-After is {asked:.0f} s, beyond the {PATIENCE:.0f} s that a call without a deadline waits"
        if stop is not None:
            self._state.upcoming_sleep = pause
            if stop(self._state):
                return f"{stop!r:.60} says stop"
            self._state.idle_for += pause
        return "" if self._layer.spending.take() else "the retry budget is used up"

    def _where(self) -> str:
        return f" at {self._visited[-1].instance.id}" if self._visited else ""

    def _tell(self, problem: Exception | None) -> None:
        if problem is None:
            return
        for note in self._notes:
            problem.add_note(note)
        if isinstance(problem, CallError) and self._visited:
            problem.tried = tuple(tried_instances(self._visited))


def _is_answer(call: Call, response: Any) -> bool:
    """Whether ``response`` has a status: what a function returned is an answer, whatever it is."""
    return call.method != FUNCTION and response is not None


def _is_bad(status: int, after: float | None, statuses: Iterable[int]) -> bool:
    return status in statuses or (status == _TOO_MANY and after is not None)


def _is_failure(call: Call, problem: Exception, statuses: Iterable[int]) -> bool:
    if isinstance(problem, AttemptError):
        return True
    if call.method != FUNCTION:
        return False
    if isinstance(problem, StatusError):
        return _is_bad(problem.status, problem.retry_after, statuses)
    return isinstance(problem, DeadlineExceeded) or not isinstance(problem, MeshError)


def _again(problem: Exception | None) -> bool:
    from tenacity import TryAgain  # noqa: PLC0415 - after a first failure only

    return isinstance(problem, TryAgain)


def _asked(call: Call, problem: Exception | None, response: Any, site: Site) -> float:
    """The seconds that the remote asked to be left alone for."""
    said = retry_after(response, wall=site.wall) if _is_answer(call, response) else getattr(problem, "retry_after", None)
    return float(said) if isinstance(said, (int, float)) else 0.0
