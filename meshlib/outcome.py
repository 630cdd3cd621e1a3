"""What the end of an attempt says of its instance: one table, for everybody who counts."""

from __future__ import annotations

from enum import Enum
from typing import Any

from meshlib.errors import AttemptTimeout, ConnectFailed, ConnectionLost


class Outcome(Enum):
    """What an attempt says of the instance that it went to."""

    ANSWERED = "answered"
    """It works; an answer of 4xx is an answer."""
    FAILED = "failed"
    """It did not do its part: no connection, no answer, 5xx."""
    PUSHBACK = "pushback"
    """It wants less for a while: 429, or 503 that says when to come again."""
    NOTHING = "nothing"
    """Ended by ourselves: refused, cancelled, no connection of the pool free."""


def of_answer(response: Any) -> Outcome:
    """What an answer says."""
    status = response.status_code
    if status == 429 or (status == 503 and "retry-after" in response.headers):
        return Outcome.PUSHBACK
    return Outcome.FAILED if status >= 500 else Outcome.ANSWERED


def of_error(problem: BaseException) -> Outcome:
    """What it says that there was no answer."""
    if isinstance(problem, (ConnectFailed, ConnectionLost)):
        return Outcome.FAILED
    return Outcome.FAILED if isinstance(problem, AttemptTimeout) and not problem.unsent else Outcome.NOTHING
