"""What is no answer: for those that have another one instead."""

from __future__ import annotations

from typing import Any

from meshlib.errors import CallError, ConfigError, StatusError, status_error_type
from meshlib.flow import FUNCTION, Call
from meshlib.outcome import Outcome, of_answer, of_status, retry_after


def is_failure(call: Call, problem: Exception) -> bool:
    """Whether ``problem`` means that there is no answer: any error of a call, of a function any exception; not an answer of
    4xx (but 429), and not a mistake in the settings."""
    if isinstance(problem, StatusError):
        return of_status(problem.status, problem.retry_after is not None) is not Outcome.ANSWERED
    return isinstance(problem, CallError) or (call.method == FUNCTION and not isinstance(problem, ConfigError))


def is_failed(call: Call, response: Any) -> bool:
    """Whether ``response`` is none: 5xx, or 429. What a function returned is one."""
    return call.method != FUNCTION and of_answer(response) is not Outcome.ANSWERED


def error_of(call: Call, response: Any, why: str = "") -> StatusError:
    """The error that an answer with an error status is, for whoever is to see one. Its body is not read."""
    status, path = response.status_code, call.path.partition(b"?")[0].decode("ascii", "replace")
    return status_error_type(status)(
        f"{call.method} {call.target}{path} answered {status}{why}",
        status=status, headers=response.headers, retry_after=retry_after(response), service=call.target,
    )  # fmt: skip
