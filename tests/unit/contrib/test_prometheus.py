"""A mesh's metrics in a registry of prometheus_client, and as text: the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from meshlib import Mesh, MissingExtra, Settings, get, retry, service_client
from meshlib.backends import memory
from meshlib.model import Instance
from meshlib_contrib.prometheus import collector


@service_client("orders", policies=[retry(attempts=2, base=0.0)])
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> dict[str, int]: ...


@pytest.fixture
def mesh(tmp_path: Path) -> Any:
    shared = memory.store(str(tmp_path))
    for number in (1, 2):
        instance = Instance("orders", f"orders-{number}", f"10.0.0.{number}", 8080)
        shared.instances["", "orders", instance.id] = (instance, float("inf"))
    left = [503, 200, 200]

    def answer(_request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(left.pop(0), json={"id": 7})

    settings = Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="shop")
    with Mesh(settings, transport=lambda _instance: httpx2.MockTransport(answer)) as made:
        yield made


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            found.setdefault(each.name, {})[tuple(sorted(each.labels.items()))] = each.value
    return found


def both(mesh: Mesh, registry: CollectorRegistry) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The text's samples, which are the collector's. Mesh and registry talk meanwhile: once between two looks nothing was."""
    age = "meshlib_snapshot_age_seconds"
    for _ in range(100):
        text, collected, again = (samples(each) for each in (
            mesh.metrics().prometheus(), generate_latest(registry).decode(), mesh.metrics().prometheus()
        ))  # fmt: skip
        assert text.pop(age).keys() == collected.pop(age).keys() == again.pop(age).keys()
        if text == again:
            break
    assert text == collected
    return text


def test_the_text_and_the_collector_say_the_same(mesh: Mesh) -> None:
    orders = mesh.client(Orders)
    orders.fetch(7)
    orders.fetch(8)
    registry = CollectorRegistry()
    registry.register(collector(mesh))
    text = both(mesh, registry)
    where = (("http_request_method", "GET"),)
    at = ("meshlib_method", "Orders.fetch"), ("outcome", "2xx"), ("service_peer_name", "orders")
    template = ("url_template", "/orders/{id}")
    assert text["meshlib_client_calls_total"] == {
        (*where, ("http_request_resend_count", again), *at, template): 1.0 for again in ("0", "1")
    }
    assert text["meshlib_policy_events_total"] == {
        (("kind", "retry.again"), ("meshlib_method", "Orders.fetch"), ("service_peer_name", "orders")): 1.0
    }
    states = {labels[1][1]: value for labels, value in text["meshlib_instances"].items()}
    assert states == {"known": 2, "prime": 2, "reserve": 0, "outlier": 0, "ejected": 0}
    assert text["meshlib_view_live"] == {(("service_peer_name", "orders"),): 1.0}


def test_turned_off(tmp_path: Path) -> None:
    with Mesh(Settings(registry=f"memory://{tmp_path}", metrics="off")) as mesh:
        names = {family.name for family in mesh.metrics().families}
        assert "http.client.request.duration" not in names
        assert "meshlib.policy.events" in names
        assert mesh.client(Orders) is not None
        assert [stack.site.recorder for stack in mesh._stacks_known] == [None]


def test_without_the_library(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.registry", None)
    with pytest.raises(MissingExtra, match=r"meshlib-cloud\[prometheus\]"):
        collector(mesh)
