"""Faults made on purpose, for tests and game days."""

from __future__ import annotations

import copy
import logging
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, ClassVar, Final, TypeAlias

from meshlib.errors import AttemptTimeout, CallError, ConfigError, ConnectFailed, ConnectionLost, StatusError
from meshlib.flow import FUNCTION, Call, Effect, Flow, Layer, Next, Sleep
from meshlib.patterns import Patterns, named_patterns
from meshlib.policies.base import Policy, Site
from meshlib.policies.failures import error_of
from meshlib.policies.match import Match
from meshlib.subsets import Subset

log = logging.getLogger(__name__)

FAULT: Final = b"X-Mesh-Fault"
"""The header of an answer that was made here."""

NAMED: Final = {"ConnectFailed": ConnectFailed, "ConnectionLost": ConnectionLost, "AttemptTimeout": AttemptTimeout}
"""Errors that a document may name."""

ALL: Final = 100.0

Abort: TypeAlias = "int | str | Exception | type[Exception] | None"


@dataclass(frozen=True, kw_only=True)
class inject_fault(Policy):  # noqa: N801 - as users write it
    """Of the calls that match ``when``, ``percent`` (0 to 100, drawn by lot; by default none) are late by ``delay`` seconds
    (float), and then fail as ``abort`` says: with an answer of this status, or with this exception (a type, an object, or
    ``"ConnectFailed"``, ``"ConnectionLost"``, ``"AttemptTimeout"``). Without ``abort`` they are late only.

    To everything above, breaker and retry included, it is the remote's doing: an answer has the header ``X-Mesh-Fault``, and a
    delay beyond what the attempt may take is an :class:`~meshlib.errors.AttemptTimeout`. The instances are not blamed: what
    goes to each of them is decided below. With ``labels``, only calls are meant that ``route`` sends to a subset by these
    labels. Of a function, a status is raised as :class:`~meshlib.errors.StatusError`.

    There is no other switch: a fault in the code is made wherever that code runs, and logged as a warning when it is put in
    place. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "inject_fault"

    delay: float | None = None
    abort: Abort = None
    percent: float = 0.0
    when: Match = field(default_factory=Match)
    labels: Mapping[str, Any] | tuple[tuple[str, Patterns], ...] = ()

    def __post_init__(self) -> None:
        if self.delay is None and self.abort is None:
            raise _wrong("abort", "there is neither a delay nor an abort", "abort=503")
        if self.delay is not None and not _is(self.delay, 0.0, 3600.0):
            raise _wrong("delay", f"{self.delay!r:.40} is not a number of seconds up to 3600", "delay=0.5")
        if not _is(self.percent, 0.0, ALL):
            raise _wrong("percent", f"{self.percent!r:.40} is not in 0..100", "percent=10")
        if not isinstance(self.when, Match):
            raise _wrong("when", f"{self.when!r:.40} is not a Match", 'when=Match(path="/orders/*")')
        _check_abort(self.abort)
        object.__setattr__(self, "labels", named_patterns(self.labels, "labels"))

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        if self.percent:
            log.warning("faults are injected into %g %% of the calls of %s %s: %s",
                        self.percent, site.service, site.method, self)  # fmt: skip
        return Fault(self, site)

    def __str__(self) -> str:
        delay = "" if self.delay is None else f"late by {self.delay:g} s"
        abort = "" if self.abort is None else f"ended by {_said(self.abort)}"
        return " and ".join(filter(None, (delay, abort)))


def _is(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _wrong(option: str, problem: str, example: str) -> ConfigError:
    return ConfigError(f"inject_fault({option}=)", problem, example=example)


def _check_abort(abort: Any) -> None:
    kind = isinstance(abort, type) and issubclass(abort, Exception) and not issubclass(abort, StatusError)
    known = abort is None or isinstance(abort, Exception) or kind
    named = isinstance(abort, str) and abort in NAMED
    status = isinstance(abort, int) and _is(abort, 400, 599)
    if not (known or named or status):
        allowed = f"a status from 400 to 599, an exception, or one of {', '.join(NAMED)}"
        raise _wrong("abort", f"{abort!r:.40} is not {allowed}", "abort=503")
    if isinstance(abort, type):
        _check_made(abort)


def _check_made(abort: type[Exception]) -> None:
    try:
        abort("an injected fault")
    except Exception:  # noqa: BLE001 - whatever its own code says
        problem = f"{abort.__name__} cannot be made of a message alone"
        raise _wrong("abort", problem, f"abort={abort.__name__}(…), an object") from None


def _another(error: Exception) -> Exception:
    """One like ``error``. One that has code to be made with need not be able to be made of its ``args``, as copying does."""
    kind = type(error)
    if not isinstance(kind.__init__, FunctionType):
        return copy.copy(error)
    made: Exception = kind.__new__(kind, *error.args)
    made.__dict__.update(error.__dict__)
    made.__dict__.pop("__notes__", None)
    return made


def _said(abort: Any) -> str:
    return abort.__name__ if isinstance(abort, type) else str(abort) if isinstance(abort, (int, str)) else repr(abort)


@dataclass(frozen=True)
class FaultState:
    """``fault`` (``"late by 0.5 s and ended by 503"``) is made in ``percent`` of the calls; whether the call ``matches``."""

    fault: str
    percent: float
    matches: bool

    def __str__(self) -> str:
        return f"{self.percent:g} % are {self.fault}" + ("" if self.matches else "; not this call, which does not match")


class Fault:
    """The layer."""

    def __init__(self, rule: inject_fault, site: Site) -> None:
        self._rule, self._site = rule, site
        self._applies, self._share = rule.when.bind(site.caller), rule.percent / ALL
        self._abort = NAMED[rule.abort] if isinstance(rule.abort, str) else rule.abort

    def __call__(self, call: Call, proceed: Next) -> Flow:
        if not self._share or not self._matches(call) or self._site.uniform() >= self._share:
            return proceed(call)
        return self._faulty(call, proceed)

    def _matches(self, call: Call) -> bool:
        return self._applies(call) and _labelled(call.subset, self._rule.labels)

    def _faulty(self, call: Call, proceed: Next) -> Flow:
        if self._rule.delay:
            call = yield from self._late(call, self._rule.delay)
        if self._abort is None:
            return (yield from proceed(call))
        self._site.emit("inject_fault.aborted", abort=_said(self._abort))
        if isinstance(self._abort, int):
            return self._answer(call, self._abort)
        raise self._error(call, self._abort)

    @staticmethod
    def _answer(call: Call, status: int) -> Any:
        from meshlib.answers import made  # noqa: PLC0415 - a fault is rare

        answer = made(call, status, b"injected fault", [(FAULT, b"abort"), (b"Content-Type", b"text/plain")])
        if call.method == FUNCTION:
            raise error_of(call, answer, ", which was injected")
        return answer

    def _late(self, call: Call, delay: float) -> Generator[Effect, Any, Call]:
        """The call for what comes after the delay. It is over when an instance would have been too slow."""
        now = self._site.clock()
        ends = [end for end in (call.attempt_timeout, call.deadline and call.deadline - now) if end is not None]
        self._site.emit("inject_fault.delayed", seconds=delay)
        if ends and delay >= min(ends):
            yield Sleep(max(0.0, min(ends)))
            raise self._error(call, AttemptTimeout)
        yield Sleep(delay)
        if call.attempt_timeout is None:
            return call
        later = call.alike()
        later.attempt_timeout = call.attempt_timeout - delay
        return later

    def _error(self, call: Call, abort: Exception | type[Exception]) -> Exception:
        if isinstance(abort, Exception):
            return _another(abort)  # each with a traceback and notes of its own
        text = f"{call.method} {call.target}: an injected fault"
        make: Any = abort
        error: Exception = make(text, service=call.target) if issubclass(abort, CallError) else make(text)
        return error

    def explain(self, call: Call) -> FaultState:
        """What it does to calls like ``call``."""
        return FaultState(str(self._rule), self._rule.percent, self._matches(call))


def _labelled(subset: Subset | None, labels: Any) -> bool:
    return not labels or (subset is not None and set(labels) <= set(subset.labels))
