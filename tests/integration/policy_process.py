"""A process that calls ``orders`` under policy documents:

    python -m tests.integration.policy_process URL

It says ``ready``, then what becomes of documents (``applied 7 kv 123.4``: version, source and monotonic time; ``rejected 8``),
and answers ``call 5`` on its standard input with how many of so many calls it refused.
"""

from __future__ import annotations

import os
import sys
import time

import httpx2

from meshlib import Mesh, RateLimited, Settings
from meshlib.events import Event


def say(line: str) -> None:
    """One line, whichever thread says it."""
    os.write(1, f"{line}\n".encode())


def tell(event: Event) -> None:
    """What became of a document."""
    kind, _, verb = event.kind.partition(".")
    if kind == "governance":
        say(f"{verb} {event.detail['version']} {event.detail.get('source', '-')} {time.monotonic()!r}")


def calls(http: httpx2.Client, count: int) -> int:
    """How many of ``count`` calls are refused."""
    refused = 0
    for _ in range(count):
        try:
            http.get("/")
        except RateLimited:
            refused += 1
    return refused


def main(url: str) -> None:
    """Until the standard input ends."""
    settings = Settings.load(registry=url, watch_idle=3600.0)
    mesh = Mesh(settings, transport=lambda _: httpx2.MockTransport(lambda _: httpx2.Response(200)))
    mesh.events.listen(tell)
    http = mesh.http("orders")
    mesh.prefetch("orders")
    mesh.snapshot("orders")
    say("ready")
    for line in sys.stdin:
        say(f"refused {calls(http, int(line.split()[1]))}")
    mesh.close()


if __name__ == "__main__":
    main(sys.argv[1])
