"""SIGTERM under load: who leaves in order costs nobody anything, not even callers whose calls may not be repeated."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from io import BytesIO, StringIO
from typing import Any
from wsgiref.handlers import SimpleHandler

import pytest

from meshlib import server
from tests.faults.registries import LocalFile
from tests.faults.stage import Process, Report, Stage, everybody_served

CONSUMERS = {
    "sync": ("--kind", "sync", "--rate", "25", "--post", "--delay", "30"),
    "async": ("--kind", "async", "--tasks", "8", "--rate", "150", "--post", "--delay", "30"),
}


@pytest.fixture
def stage() -> Iterator[Stage]:
    registry = LocalFile()
    with Stage(registry.url, MESH_CONNECT_TIMEOUT="5") as made:
        yield made
    registry.close()


def left(stage: Stage, leaver: tuple[str, Process]) -> list[Report]:
    """What consumers have seen when ``leaver`` has got its SIGTERM, has ended, and a second more has passed."""
    ports = [stage.provider()[0] for _ in range(2)]
    consumers = [stage.consumer(*options) for options in CONSUMERS.values()]
    everybody_served(consumers, [*ports, leaver[0]])
    leaver[1].signal(signal.SIGTERM)
    assert leaver[1].wait() in (0, -signal.SIGTERM)  # uvicorn ends by the signal, when all is done
    time.sleep(1)
    seen = [consumer.ask() for consumer in consumers]
    for consumer in consumers:
        consumer.close()  # or the next scene would have more and more company
    return seen


@pytest.mark.parametrize("example", ["provider_wsgi", "provider_asgi"])
def test_a_provider_that_stops_fails_no_call(stage: Stage, example: str) -> None:
    """Nor any attempt. A caller has a second to hear of it: where a busy machine stops one for longer, another one stops."""

    def nothing_failed() -> bool:
        port, process = stage.provider(module=f"examples.{example}")
        reports = dict(zip(CONSUMERS, left(stage, (f"port {port}", process)), strict=True))
        for kind, seen in reports.items():
            print(f"{example} {kind:5}: {seen.calls} POSTs, {len(seen.attempts)} attempts failed, {len(seen.failed)} failed")
        return not any(seen.attempts or seen.failed for seen in reports.values())

    assert any(nothing_failed() for _ in range(3)), stage.logs()


def test_a_provider_that_just_ends_fails_calls(stage: Stage) -> None:
    """Those that were with it in that moment; it may have had none, so another one ends, and another one."""
    assert any(seen.failed for _ in range(8) for seen in left(stage, stage.provider("--abrupt")))


def test_a_wsgi_app_answers_what_still_comes_while_it_drains() -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"tea"]

    in_flight, out = server.InFlight(), BytesIO()
    in_flight.draining = True
    SimpleHandler(BytesIO(), out, StringIO(), {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.0"}).run(
        server.wsgi(app, in_flight)
    )
    assert out.getvalue().startswith(b"HTTP/1.0 200 OK")
    assert len(in_flight) == 0
