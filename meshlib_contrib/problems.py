"""What a web framework answers when a view fails of meshlib's errors: problem details (RFC 9457)."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Final

from meshlib.errors import DeadlineExceeded, RateLimited, Refused

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
