"""Refusals as problem details (RFC 9457)."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from meshlib.errors import BulkheadFull, DeadlineExceeded, Overloaded, RateLimited, Refused

Said: TypeAlias = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers and body of an answer."""

MEDIA_TYPE: Final = "application/problem+json"

_DETAILS: Final[tuple[tuple[type[Exception], HTTPStatus, str], ...]] = (
    (RateLimited, HTTPStatus.TOO_MANY_REQUESTS, "as many requests as are allowed have been made"),
    (BulkheadFull, HTTPStatus.SERVICE_UNAVAILABLE, "as many requests as are allowed are being served"),
    (Overloaded, HTTPStatus.SERVICE_UNAVAILABLE, "there is more to do than can be done in time"),
    (Refused, HTTPStatus.SERVICE_UNAVAILABLE, "this is not served for now"),
    (DeadlineExceeded, HTTPStatus.GATEWAY_TIMEOUT, "the deadline of the request has passed"),
)
"""What is told of each: never the error's own text, which names what is behind us."""


def problem(error: Refused | DeadlineExceeded) -> Said:
    """The answer for a request that was refused with ``error``, as ``(status, headers, body)``: 429 for
    :class:`~meshlib.errors.RateLimited`, with ``RateLimit`` and ``RateLimit-Policy``; 503 for any other
    :class:`~meshlib.errors.Refused`; 504 for :class:`~meshlib.errors.DeadlineExceeded`. Both of the former with ``Retry-After``
    in whole seconds. For whoever turns errors of decorated functions into answers::

        @app.errorhandler(Refused)
        def refused(error):
            status, headers, body = problem(error)
            return body, status, headers
    """
    status, detail = next((status, detail) for kind, status, detail in _DETAILS if isinstance(error, kind))
    document = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    body = json.dumps(document).encode()
    headers = [("Content-Type", MEDIA_TYPE), ("Content-Length", str(len(body))), *_fields(error)]
    return status.value, headers, body


def _fields(error: Refused | DeadlineExceeded) -> list[tuple[str, str]]:
    if isinstance(error, RateLimited):
        return list(error.headers().items())
    if isinstance(error, Refused):
        return [("Retry-After", str(max(1, math.ceil(error.retry_after or 0.0))))]
    return []


def given(answer: Any) -> Said:
    """What a layer answered in place of the app (an injected fault, say): a response as clients get it."""
    raw = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers.raw]
    return answer.status_code, raw, answer.content
