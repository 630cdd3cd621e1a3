"""The text that Prometheus reads, read by its own parsers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from meshlib.metrics.families import Distribution, Family, Metrics, Sample, labelled


def read(metrics: Metrics, parse: Any = openmetrics) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    return {family.name: [(each.name, each.labels, each.value) for each in family.samples]
            for family in parse(metrics.prometheus())}  # fmt: skip


HISTOGRAM = Family(
    "http.client.request.duration", "histogram", "How long.", "s",
    (Sample({"service.peer.name": "orders"}, Distribution(((0.005, 1), (10.0, 2)), 3, 12.5)),),
)  # fmt: skip
COUNTER = Family("meshlib.policy.events", "counter", "What policies did.", samples=(Sample({"kind": "retry.again"}, 4),))
GAUGE = Family("meshlib.view.live", "gauge", "Whether.", samples=(Sample({}, 1),))


def test_each_kind() -> None:
    name = "http_client_request_duration_seconds"
    assert read(Metrics((HISTOGRAM, COUNTER, GAUGE))) == {
        name: [
            (f"{name}_bucket", {"service_peer_name": "orders", "le": "0.005"}, 1.0),
            (f"{name}_bucket", {"service_peer_name": "orders", "le": "10.0"}, 2.0),
            (f"{name}_bucket", {"service_peer_name": "orders", "le": "+Inf"}, 3.0),
            (f"{name}_count", {"service_peer_name": "orders"}, 3.0),
            (f"{name}_sum", {"service_peer_name": "orders"}, 12.5),
        ],
        "meshlib_policy_events": [("meshlib_policy_events_total", {"kind": "retry.again"}, 4.0)],
        "meshlib_view_live": [("meshlib_view_live", {}, 1.0)],
    }


def test_scrapers_of_the_older_form_read_it_too() -> None:
    found = read(Metrics((HISTOGRAM, COUNTER, GAUGE)), plain)
    assert sum(map(len, found.values())) == 7
    assert ("meshlib_policy_events_total", {"kind": "retry.again"}, 4.0) in [
        each for samples in found.values() for each in samples
    ]


def test_nothing_at_all() -> None:
    assert Metrics().prometheus() == "# EOF\n"
    assert read(Metrics((Family("a.b", "gauge", ""),))) == {"a_b": []}


@given(st.dictionaries(st.sampled_from(["kind", "service.peer.name", "x"]), st.text(max_size=20), min_size=1), st.text())
def test_any_text_comes_through(labels: dict[str, str], words: str) -> None:
    names, values = zip(*labels.items(), strict=True)
    kept = labelled(names, values)
    metrics = Metrics((Family("a.b", "gauge", words, samples=(Sample(kept, 1),)),))
    ((_, found, _),) = read(metrics)["a_b"]
    assert found == {name.replace(".", "_"): value for name, value in labels.items() if value}


@pytest.mark.parametrize("value", [0, 3, 0.1, 1e-9, 1e300, math.inf, -math.inf])
def test_numbers(value: float) -> None:
    ((_, _, found),) = read(Metrics((Family("a", "gauge", "", samples=(Sample({}, value),)),)))["a"]
    assert found == value


def test_the_family_of_a_name() -> None:
    assert Metrics((COUNTER, GAUGE)).family("meshlib.view.live") is GAUGE
    with pytest.raises(KeyError, match="nothing"):
        Metrics((GAUGE,)).family("nothing")
