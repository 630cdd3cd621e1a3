"""What the end of an attempt says of its instance: one table, for everybody who counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

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
    """What an answer says; a plain value, which a function returned, is one."""
    status = getattr(response, "status_code", 0)
    return of_status(status, status == 503 and "retry-after" in response.headers)


def of_status(status: int, says_when: bool) -> Outcome:
    """The same for a status; ``says_when``: with ``Retry-After``."""
    if status == 429 or (status == 503 and says_when):
        return Outcome.PUSHBACK
    return Outcome.FAILED if status >= 500 else Outcome.ANSWERED


def of_error(problem: BaseException) -> Outcome:
    """What it says that there was no answer."""
    if isinstance(problem, (ConnectFailed, ConnectionLost)):
        return Outcome.FAILED
    return Outcome.FAILED if isinstance(problem, AttemptTimeout) and not problem.unsent else Outcome.NOTHING


def retry_after(response: Any, *, wall: Callable[[], float] = time.time) -> float | None:
    """The seconds after which an answer says to come again (``Retry-After``, as seconds or as a date), None when it does not
    say."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), _YEAR)
    if not text:
        return None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rare

    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - wall()), _YEAR)
    except (ValueError, OverflowError):
        return None


_YEAR: Final = 366 * 86_400.0
