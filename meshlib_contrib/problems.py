"""What a web framework answers when a view fails of meshlib's errors: problem details (RFC 9457)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from meshlib.errors import DeadlineExceeded, RateLimited, Refused
from meshlib.policies.functions import misplaced

log = logging.getLogger(__name__)

HANDLED: Final = (Refused, DeadlineExceeded)
"""The errors that have an answer; subclasses included."""


def problem(error: Refused | DeadlineExceeded) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, header fields and body. What the error says of services and instances stays in the log."""
    late, limited = isinstance(error, DeadlineExceeded), isinstance(error, RateLimited)
    status = HTTPStatus.GATEWAY_TIMEOUT if late else HTTPStatus.TOO_MANY_REQUESTS if limited else HTTPStatus.SERVICE_UNAVAILABLE
    document = {"type": "about:blank", "title": status.phrase, "status": status.value}
    return status.value, [("Content-Type", "application/problem+json"), *_fields(error)], json.dumps(document).encode()


def _fields(error: Refused | DeadlineExceeded) -> list[tuple[str, str]]:
    if isinstance(error, RateLimited):
        return list(error.headers().items())
    if isinstance(error, Refused):
        return [("Retry-After", str(max(1, math.ceil(error.retry_after or 0.0))))]
    return []


def warn_of_misplaced(functions: Iterable[Any], registers: str) -> None:
    """Warn of views whose policies stand above what ``registers`` them: there they are never asked."""
    for name in misplaced(functions):
        log.warning(
            "the policies of %s stand above %s, which does not see them: put them below it, next to the def", name, registers
        )
