"""Calls are counted by how they ended, how long they took, and how often they were sent again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshlib import NoInstances, RateLimited, bulkhead, rate_limit, retry, timeout
from meshlib.client.stack import Stack
from meshlib.errors import AttemptTimeout, ConnectFailed
from meshlib.metrics import client
from meshlib.metrics.families import Distribution, Family
from meshlib.metrics.recorder import OTHER, Recorder
from meshlib.policies.base import Policy, Site
from meshlib.policies.observe import Observe
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import SHELLS, Answer, Script, call_to, fleet, governed


class Place:
    def __init__(self, *policies: Policy, limit: int = 1000) -> None:
        self.clock, self.recorder = FakeClock(), Recorder(len(client.LABELS), limit=limit)
        self.site = Site(service="orders", method="Orders.fetch", template="/orders/{id}", clock=self.clock,
                         recorder=self.recorder, uniform=lambda: 0.5)  # fmt: skip
        self.layer = Observe(self.site, self.recorder)
        self.policies = policies

    def play(self, *script: Any, **options: Any) -> Any:
        layers = [self.layer, *(policy.bind(self.site) for policy in self.policies)]
        return play(layers, script, clock=self.clock, **options)

    def families(self) -> dict[str, Family]:
        return {family.name: family for family in client.families(self.recorder)}

    @property
    def calls(self) -> dict[tuple[str, str], float]:
        """By outcome and how often they were sent again."""
        samples = self.families()["meshlib.client.calls"].samples
        return {(each.labels["outcome"], each.labels.get("http.request.resend_count", "")): each.value for each in samples}  # type: ignore[misc]


def test_what_is_told_of_a_call() -> None:
    place = Place()
    place.play(Reply(seconds=0.02))
    place.play(Reply(404, seconds=0.2))
    durations = place.families()["http.client.request.duration"]
    assert (durations.kind, durations.unit) == ("histogram", "s")
    good, bad = durations.samples
    assert good.labels == {
        "service.peer.name": "orders", "meshlib.method": "Orders.fetch", "http.request.method": "GET",
        "url.template": "/orders/{id}", "http.response.status_code": "200",
    }  # fmt: skip
    assert bad.labels == {**good.labels, "http.response.status_code": "404", "error.type": "404"}
    assert isinstance(good.value, Distribution)
    assert (good.value.count, good.value.sum) == (1, pytest.approx(0.02))
    assert [bound for bound, count in good.value.buckets if count] == [
        0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    ]  # fmt: skip
    assert place.calls == {("2xx", "0"): 1, ("4xx", "0"): 1}


@pytest.mark.parametrize(
    ("policies", "script", "counted"),
    [
        ([], [Reply(302)], ("3xx", "0")),
        ([], [Reply(503)], ("5xx", "0")),
        ([], [AttemptTimeout("slow")], ("AttemptTimeout", "0")),
        ([], [asyncio.CancelledError()], ("CancelledError", "0")),
        ([], [ZeroDivisionError()], ("ZeroDivisionError", "0")),
        ([retry(attempts=3, base=0.0)], [Reply(503), Reply(503), Reply(503)], ("5xx", "0")),
        ([timeout(1.0)], [AttemptTimeout("slow")], ("AttemptTimeout", "0")),
    ],
)
def test_how_it_ended(policies: list[Policy], script: list[Any], counted: tuple[str, str]) -> None:
    """Without a balancer nothing is known of attempts: see below."""
    place = Place(*policies)
    place.play(*script)
    assert place.calls == {counted: 1}


def test_what_is_refused_is_counted_too() -> None:
    place = Place(rate_limit("1/h"), bulkhead(1))
    limit, places = (policy.bind(place.site) for policy in place.policies)
    play([place.layer, limit, places], [Reply()], clock=place.clock)
    refused = play([place.layer, limit, places], clock=place.clock)
    assert isinstance(refused.error, RateLimited)
    assert place.calls == {("2xx", "0"): 1, ("RateLimited", "0"): 1}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("policies", "outcomes", "counted"),
    [
        ([], [Answer()], ("2xx", "0")),
        ([], [ConnectFailed, ConnectFailed, Answer()], ("2xx", "2")),
        ([], [ConnectFailed, ConnectFailed, ConnectFailed], ("ConnectFailed", "2")),
        ([retry(attempts=3, base=0.0)], [Answer(503), Answer()], ("2xx", "1")),
        ([retry(attempts=3, base=0.0)], [Answer(503), ConnectFailed, Answer(503), Answer()], ("2xx", "3")),
        ([retry(attempts=3, base=0.0)], [Answer(503), Answer(503), Answer(503)], ("5xx", "2")),
        ([retry(attempts=9, base=0.0)], [Answer(503)] * 8 + [Answer()], ("2xx", "5")),
    ],
)
def test_how_often_it_was_sent_again(shell: str, policies: list[Policy], outcomes: Any, counted: tuple[str, str]) -> None:
    place = Place()
    layers = [policy.bind(place.site) for policy in policies]
    proceed = governed(fleet("a", "b", "c"), place.layer, *layers, clock=place.clock)
    script = Script(*[Answer(each.status_code) if isinstance(each, Answer) else each for each in outcomes])
    try:
        SHELLS[shell](proceed, call_to(), script)
    except ConnectFailed:
        assert counted[0] == "ConnectFailed"
    assert place.calls == {counted: 1}


def test_nobody_to_call() -> None:
    place = Place()
    with pytest.raises(NoInstances):
        SHELLS["run"](governed(fleet(), place.layer), call_to(), Script())
    assert place.calls == {("NoInstances", "0"): 1}


def test_methods_that_anybody_may_think_up_are_one() -> None:
    place = Place()
    for method in ("GET", "BREW", "STIR"):
        place.play(Reply(), call=call_to(method=method))
    samples = place.families()["meshlib.client.calls"].samples
    assert {each.labels["http.request.method"]: each.value for each in samples} == {"GET": 1, "_OTHER": 2}


def test_no_more_series_than_the_limit() -> None:
    place = Place(limit=2)
    for status in (200, 201, 202, 203, 200):
        place.play(Reply(status))
    durations = place.families()["http.client.request.duration"].samples
    assert [(each.labels.get("http.response.status_code"), each.value.count) for each in durations] == [  # type: ignore[union-attr]
        ("200", 2), ("201", 1), (None, 2),
    ]  # fmt: skip
    assert durations[-1].labels == {"service.peer.name": OTHER}
    assert place.calls == {("2xx", "0"): 3, (OTHER, ""): 2}


def test_it_stands_outermost_and_only_where_calls_are_counted() -> None:
    place = Place()
    below = governed(fleet("a"))
    counted = Stack(place.site, [rate_limit("1/h")], below)
    counted.overlay([bulkhead(5)])
    for outcome in (None, RateLimited):
        try:
            SHELLS["run"](counted.proceed, call_to(), Script(Answer()))
        except RateLimited:
            assert outcome is RateLimited
    assert place.calls == {("2xx", "0"): 1, ("RateLimited", "0"): 1}
    call = call_to()
    SHELLS["run"](Stack(Site(service="orders"), [], below).proceed, call, Script(Answer()))
    assert call.again is None
