"""Refusals as problem details."""

from __future__ import annotations

import json

import pytest

from meshlib import BulkheadFull, DeadlineExceeded, Overloaded, RateLimited, Refused, ServiceUrl, problem

SECRET = ServiceUrl("vault", instance="vault-10.0.0.7")


class CircuitOpen(Refused):
    """A refusal of somebody else's policy."""


@pytest.mark.parametrize(
    ("error", "status", "title", "fields"),
    [
        (RateLimited("10.0.0.7", retry_after=1.2, service=SECRET, fields={"RateLimit": '"a";r=0'}), 429, "Too Many Requests",
         {"Retry-After": "2", "RateLimit": '"a";r=0'}),
        (RateLimited("10.0.0.7"), 429, "Too Many Requests", {"Retry-After": "1"}),
        (BulkheadFull("10.0.0.7", service=SECRET), 503, "Service Unavailable", {"Retry-After": "1"}),
        (Overloaded("10.0.0.7", retry_after=0.05), 503, "Service Unavailable", {"Retry-After": "1"}),
        (CircuitOpen("10.0.0.7", retry_after=30.0), 503, "Service Unavailable", {"Retry-After": "30"}),
        (DeadlineExceeded("10.0.0.7", service=SECRET), 504, "Gateway Timeout", {}),
    ],
)  # fmt: skip
def test_each(error: Refused | DeadlineExceeded, status: int, title: str, fields: dict[str, str]) -> None:
    got, headers, body = problem(error)
    document = json.loads(body)
    assert (got, document["status"], document["title"], document["type"]) == (status, status, title, "about:blank")
    assert dict(headers) == {"Content-Type": "application/problem+json", "Content-Length": str(len(body)), **fields}
    assert document["detail"]
    assert b"10.0.0.7" not in body, "what is behind us is nobody's business"
