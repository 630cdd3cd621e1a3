"""What a mesh tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from meshlib import Mesh, Settings
from meshlib.backends import memory
from meshlib.metrics.families import Family, Metrics, Sample
from meshlib.model import Instance


def values(metrics: Metrics, name: str) -> dict[str, Any]:
    return {", ".join(each.labels.values()): each.value for each in metrics.family(name).samples}


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("204 No Content", [])
    return []


def test_a_provider_and_its_consumer(tmp_path: Path) -> None:
    settings = Settings(
        registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders", port=8080, cold_start_timeout=60.0
    )
    chunks = httpx2.MockTransport(lambda _: httpx2.Response(200, stream=httpx2.ByteStream(b"x")))
    with Mesh(settings, transport=lambda _: chunks) as mesh:
        assert values(mesh.metrics(), "meshlib.registrations") == {"accepted": 0, "waiting": 0}
        registration = mesh.register()
        registration.wait(60)
        metrics = mesh.metrics()
        assert values(metrics, "meshlib.registrations") == {"accepted": 1, "waiting": 0}
        assert values(metrics, "http.server.active_requests") == {"": 0}

        body = mesh.wsgi(app)({"REQUEST_METHOD": "GET"}, lambda *_: None)
        assert values(mesh.metrics(), "http.server.active_requests") == {"": 1}
        body.close()  # type: ignore[attr-defined]
        metrics = mesh.metrics()
        assert values(metrics, "http.server.active_requests") == {"": 0}
        assert values(metrics, "http.server.request.duration")["GET, 204"].count == 1

        assert mesh.snapshot("orders") is not None
        with mesh.http("orders") as http, http.stream("GET", "/") as answer:
            assert answer.status_code == 200
        metrics = mesh.metrics()
        assert values(metrics, "meshlib.view.live") == {"orders": 1}
        assert 0 <= values(metrics, "meshlib.snapshot.age")["orders"] < 60
        assert values(metrics, "meshlib.instances")["orders, prime"] == 1


def test_attempts_under_way_and_instances_out(tmp_path: Path) -> None:
    shared = memory.store(str(tmp_path))
    for number in (1, 2):
        instance = Instance("orders", f"orders-{number}", f"10.0.0.{number}", 8080)
        shared.instances["", "orders", instance.id] = (instance, float("inf"))
    settings = Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), cold_start_timeout=60.0)
    with Mesh(settings) as mesh:
        assert mesh.snapshot("orders") is not None
        view = mesh.view("orders")
        first, second = view.fleet.endpoints()
        first.in_flight |= {1, 2}
        second.in_flight.add(3)
        view.fleet._on_eject = lambda fleet, endpoint: None
        view.fleet.eject(first)
        metrics = mesh.metrics()
        assert values(metrics, "http.client.active_requests") == {"orders": 3}
        assert values(metrics, "meshlib.instances") == {
            "orders, known": 2, "orders, prime": 1, "orders, reserve": 0, "orders, outlier": 0, "orders, ejected": 1,
        }  # fmt: skip


def test_shared_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of processes: tests/fork. Here: where they are kept, and that they are, at the end at the latest."""
    settings = Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders", port=8080, metrics="shared")
    with Mesh(settings) as mesh:
        assert mesh._shelf is None
        with mesh.register() as registration:
            registration.wait(60)
            mesh.wsgi(app)({"REQUEST_METHOD": "GET"}, lambda *_: None).close()  # type: ignore[attr-defined]
            before = Family("meshlib.policy.events", "counter", "", samples=(Sample({"kind": "x"}, 3),))
            kept = tmp_path / "metrics" / "orders-8080"
            assert mesh.metrics().family("http.server.request.duration").samples[0].value.count == 1  # type: ignore[union-attr]
            (kept / "1.json").write_bytes(msgspec.json.encode([before]))  # of one that has ended
            assert values(mesh.metrics(), "meshlib.policy.events") == {"x": 3}
            (kept / "0.json").unlink()
        assert b"http.server.request.duration" in (kept / "0.json").read_bytes()
        with mesh.register():
            assert values(mesh.metrics(), "http.server.request.duration")["GET, 204"].count == 1, "not counted twice"
        (kept / "slots").chmod(0o666)  # before it is looked at anew, by the mesh's own thread perhaps
        mesh._shelf.forked()
        assert values(mesh.metrics(), "http.server.request.duration")["GET, 204"].count == 1
    assert caplog.text.count("the counts of other processes are not known") == 1
