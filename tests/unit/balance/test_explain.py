"""Explain: of every instance whether the call may go there, and why not; what errors tell."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from meshlib.balance.endpoint import Ejection, Reason
from meshlib.balance.explain import SHOWN, Seen, candidates, listing
from meshlib.balance.layer import Balance
from meshlib.balance.pickers import PeakEwma
from meshlib.errors import AttemptTimeout, CallError, ConnectFailed, NoInstances
from meshlib.flow import run
from meshlib.model import ServiceUrl, Status
from meshlib.outcome import Outcome
from meshlib.subsets import Subset
from tests.unit.flows import FakeSource, Script, call_to, fleet, governed, in_turn, instance, update


def told(known: Any, call: Any) -> dict[str, str]:
    return {one.instance.id: "; ".join(one.dropped) for one in candidates(known, call)}


def everything() -> Any:
    known = fleet("a", "b", "h", "u", "s", instance("d", status=Status.DRAINING), instance("m", status=Status.MAINTENANCE),
                  instance("o", zone="z1"), instance("v", version="2.0"), instance("w", weight=0))  # fmt: skip
    update(known, *[one.instance for one in known.endpoints()], suspects=["s"])
    known.eject(known.find("h"), Ejection(Reason.HUNG))
    known.eject(known.find("u"))
    known.eject(known.find("o"), Ejection(Reason.OUTLIER, 30.0))
    return known


def test_every_verdict() -> None:
    known = everything()
    call = call_to().excluding(known.find("b"))
    assert told(known, call) == {
        "a": "", "v": "",
        "b": "tried already",
        "d": "draining, used when nobody better is there",
        "h": "hung, out until a probe succeeds",
        "m": "in maintenance",
        "o": "outlier, out for 30 s",
        "s": "a suspect: unlisted, used when nobody better is there",
        "u": "unreachable, out until a probe succeeds",
        "w": "of weight 0, used when nobody better is there",
    }  # fmt: skip


def test_rules_and_health_are_told_together() -> None:
    call = call_to()
    call.subset = Subset(version="^2", strict=True)
    verdicts = told(everything(), call)
    assert verdicts["v"] == ""
    assert verdicts["a"] == "version '' is not in ^2"
    assert verdicts["u"] == "unreachable, out until a probe succeeds; version '' is not in ^2"
    call.subset = Subset(labels={"track": ["canary", "beta"]}, zone="z9", strict=True)
    assert told(everything(), call)["a"] == "label track is None, not canary or beta"
    call.subset = Subset(zone="z1")
    assert told(everything(), call)["a"] == "", "nobody of it is healthy, and it is not strict"
    call.subset = Subset(instances=1)
    known = fleet("a", "b")
    assert sorted(told(known, call).values()) == ["", "not among those chosen of Subset(instances=1)"]


def test_one_exact_instance() -> None:
    assert told(fleet("a", "b"), call_to(target=ServiceUrl("orders", "", "b"))) == {"a": "another one is named", "b": ""}


def test_what_is_told_is_what_is_done() -> None:
    """Whoever may be chosen, is, and nobody else: by the same function that balancing goes by."""
    known = everything()
    for subset in (None, Subset(version="^2"), Subset(zone="z1", strict=True), Subset(instances=2)):
        call = call_to()
        call.subset = subset
        picked = {Balance(FakeSource(known), PeakEwma()).pick(call).instance.id for _ in range(50)}
        assert picked == {one.instance.id for one in candidates(known, call) if one.eligible}


def test_measurements() -> None:
    known = fleet("a", "b")
    PeakEwma().observe(known.find("a"), 0.025, Outcome.ANSWERED, 7.0)
    known.find("a").in_flight.add(1)
    one, other = candidates(known, call_to())
    assert (one.latency, one.in_flight, other.latency, other.score) == (0.025, 1, None, None)
    assert one.score == known.find("a").cost
    assert str(one) == f"a at {one.instance.netloc} (prime; 25 ms, 1 in flight, weight 1): may be chosen"
    assert "unmeasured" in str(other)


def test_a_long_list_is_cut_where_it_is_text() -> None:
    found = candidates(fleet(*[f"o-{number}" for number in range(SHOWN + 7)]), call_to())
    assert len(found) == SHOWN + 7
    assert listing(found).endswith("\n  and 7 more")
    assert listing(()) == "  none"


# -- errors


def failure(known: Any, *outcomes: Any, **options: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        run(governed(known), call_to(**options), Script(*outcomes))
    return caught.value


def test_an_error_tells_what_was_tried_and_why() -> None:
    known = fleet("a", "b", instance("m", status=Status.MAINTENANCE))
    text = failure(known, ConnectFailed("to a: refused"), AttemptTimeout("at b: slow")).explain()
    lines = text.split("\n")
    assert lines[:3] == [
        "AttemptTimeout: at b: slow",
        "attempt 1: ConnectFailed: to a: refused",
        "attempt 2: AttemptTimeout: at b: slow",
    ]
    assert lines[3].startswith("instances, as of ")
    assert any(line.startswith("  b at") and line.endswith("may be chosen") for line in lines)
    assert any(line.startswith("  a at") and "unreachable" in line and "tried already" in line for line in lines)
    assert any(line.startswith("  m at") and line.endswith("not: in maintenance") for line in lines)


def test_what_was_seen_is_of_the_time() -> None:
    known = fleet("a")
    error = failure(known, AttemptTimeout("slow"))
    known.eject(known.find("a"))
    assert isinstance(error.seen, Seen)
    assert error.seen.candidates()[0].tier == "prime"


def test_with_nobody_to_call() -> None:
    error = failure(fleet(instance("m", status=Status.MAINTENANCE)))
    assert isinstance(error, NoInstances)
    assert "not: in maintenance" in error.explain()
    assert failure(fleet()).explain().endswith("\n  none")


def test_the_subset_is_named() -> None:
    call = call_to()
    call.subset = Subset(version="^3", strict=True)
    with pytest.raises(NoInstances) as caught:
        Balance(FakeSource(fleet("a")), in_turn).pick(call)
    assert "wanted: Subset(version='^3', strict=True)\n" in caught.value.explain()
    assert "version '' is not in ^3" in caught.value.explain()


def test_what_was_seen_goes_to_other_processes_as_text() -> None:
    error = failure(fleet(instance("m", status=Status.MAINTENANCE)))
    assert pickle.loads(pickle.dumps(error)).explain() == error.explain()


def test_an_error_without_a_fleet() -> None:
    cause = OSError("refused")
    error = CallError("broken")
    error.__cause__ = cause
    assert error.explain() == "CallError: broken\nbecause of OSError: refused"
