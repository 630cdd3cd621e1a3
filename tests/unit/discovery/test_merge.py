"""What a listing means for what was known: rows, and a property against a naive model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.backends import Listing
from meshlib.discovery.merge import Known, drop, merge
from meshlib.model import Instance, ServiceUrl, Snapshot, Status

SERVICE = ServiceUrl("orders")
HARD_AGE = 1000.0


def one(text: str) -> Instance:
    """``a``, ``a:draining``, ``a:maintenance``, ``a@2`` (its second generation)."""
    name, _, status = text.partition(":")
    name, _, generation = name.partition("@")
    return Instance("orders", name, "10.0.0.1", 8080, status=Status(status or "up"), generation=generation)


def listing(text: str) -> Listing:
    return Listing.of([one(part) for part in text.split()])


def known(text: str, *, suspects: str = "", since: float = 0.0, gone: dict[str, float] | None = None) -> Known:
    ids = suspects.split()
    return Known(Snapshot(SERVICE, listing(text).instances, frozenset(ids)), dict.fromkeys(ids, since), gone or {})


def shown(known: Known) -> str:
    """Ids in order, suspects with a question mark."""
    return " ".join(each.id + "?" * (each.id in known.snapshot.suspects) for each in known.snapshot.instances)


ROWS = {
    "the first listing is data": (None, "b a", "a b"),
    "so is the first empty one": (None, "", ""),
    "unchanged": ("a b", "a b", "a b"),
    "one more": ("a", "a b", "a b"),
    "one of three left": ("a b c", "a b", "a b"),
    "exactly half left": ("a b c d", "a b", "a b"),
    "one of two left": ("a b", "a", "a"),
    "more than half left": ("a b c", "a", "a b? c?"),
    "an empty list": ("a b c", "", "a? b? c?"),
    "the only one left": ("a", "", "a?"),
    "all replaced at once": ("a b", "c d", "a? b? c d"),
    "one that was draining has left": ("a:draining", "", ""),
    "two stay, draining ones have left": ("a b:draining c:draining", "a", "a"),
    "those who were draining do not hide that all others are missing": ("a b:draining c:draining d:draining", "", "a?"),
    "nor that most of them are": ("a b c d:draining e:draining f:draining", "a", "a b? c?"),
    "one in maintenance is like any other": ("a:maintenance b:maintenance", "", "a? b?"),
}


@pytest.mark.parametrize(("before", "listed", "after"), ROWS.values(), ids=ROWS)
def test_a_listing(before: str | None, listed: str, after: str) -> None:
    result = merge(None if before is None else known(before), listing(listed), SERVICE, now=5.0, clock=5.0, hard_age=HARD_AGE)
    assert shown(result) == after
    assert result.snapshot.confirmed == 5.0
    assert set(result.since) == result.snapshot.suspects


@dataclass
class Story:
    """Listings that arrive one after the other. ``now`` is the wall's time, which somebody may ``set`` by some seconds."""

    now: float = 100.0
    clock: float = 5.0
    known: Known | None = None

    def hear(self, text: str, *, after: float = 10.0, set: float = 0.0) -> str:
        self.now += after + set
        self.clock += after
        self.known = merge(self.known, listing(text), SERVICE, now=self.now, clock=self.clock, hard_age=HARD_AGE)
        return shown(self.known)

    @property
    def gone(self) -> dict[str, float]:
        assert self.known is not None
        return dict(self.known.gone)


def test_suspects_that_are_listed_again_are_none() -> None:
    story = Story()
    story.hear("a b c")
    assert story.hear("") == "a? b? c?"
    assert story.hear("b") == "a? b c?"
    assert story.hear("a b c") == "a b c"
    assert story.gone == {}


def test_suspects_do_not_count_for_what_is_sudden() -> None:
    story = Story()
    story.hear("a b c")
    story.hear("")
    story.hear("d e f")
    assert story.hear("d e") == "a? b? c? d e"


def test_suspects_go_at_the_hard_age_however_often_the_list_is_confirmed() -> None:
    story = Story()
    story.hear("a")
    assert story.hear("") == "a?"
    for _ in range(9):
        assert story.hear("", after=HARD_AGE / 10) == "a?"
    assert story.hear("", after=HARD_AGE / 10) == ""
    assert story.gone == {"a": story.now}


@pytest.mark.parametrize("by", [-5e8, 5e8], ids=["back", "forward"])
def test_a_clock_that_is_set_neither_prolongs_nor_ends_a_suspicion(by: float) -> None:
    story = Story(now=1e9)
    story.hear("a")
    assert story.hear("") == "a?"
    assert story.hear("", set=by) == "a?"  # forward, too: as a machine's that begins in 1970
    assert story.hear("", after=HARD_AGE) == ""


def test_tombstones_stay_until_it_is_listed_again_or_the_hard_age() -> None:
    story = Story()
    story.hear("a b c d")
    story.hear("a b c")
    assert story.gone == {"d": story.now}
    buried = story.now
    story.hear("a b")
    assert story.gone == {"c": story.now, "d": buried}
    story.hear("a b d")
    assert story.gone == {"c": buried + 10}
    story.hear("a b d", after=HARD_AGE)
    assert story.gone == {}


def test_another_generation_replaces_a_suspect() -> None:
    before = known("a@1 b", suspects="a b")
    after = merge(before, listing("a@2"), SERVICE, now=5.0, clock=5.0, hard_age=HARD_AGE)
    assert shown(after) == "a b?"
    assert after.snapshot.instances[0].generation == "2"


def test_a_suspect_that_a_probe_found_dead() -> None:
    before = known("a b c", suspects="a b", gone={"z": 1.0})
    after = drop(before, "a", now=7.0)
    assert (shown(after), dict(after.gone), set(after.since)) == ("b? c", {"z": 1.0, "a": 7.0}, {"b"})
    assert drop(after, "c", now=8.0) is after, "it is listed: the probe came too late"
    assert drop(after, "unknown", now=8.0) is after


def test_dropping_keeps_the_origin() -> None:
    before = known("a b", suspects="a")
    kept = Snapshot(SERVICE, before.snapshot.instances, before.snapshot.suspects, 42.0, "disk", "r1")
    after = drop(Known(kept, before.since), "a", now=50.0).snapshot
    assert (after.confirmed, after.source, after.revision) == (42.0, "disk", "r1")


@pytest.mark.parametrize("size", [20_000])
def test_a_large_fleet_that_vanishes_costs_no_time(size: int) -> None:
    import time

    whole = Listing.of([Instance("orders", f"i{number}", "10.0.0.1", 80) for number in range(size)])
    before = merge(None, whole, SERVICE, now=1.0, clock=1.0, hard_age=HARD_AGE)
    start = time.thread_time()  # other threads of this process have other tests' work to do
    after = merge(before, Listing(whole.instances[: size // 3]), SERVICE, now=2.0, clock=2.0, hard_age=HARD_AGE)
    assert len(after.snapshot.suspects) == size - size // 3
    assert time.thread_time() - start < 2.0  # comparing each with each took minutes


# -- a property, against a model that keeps nothing but the last state of each id

names = st.sampled_from("abcdefg")
statuses = st.sampled_from(["", ":draining", ":maintenance"])
listings = st.lists(st.tuples(names, statuses), max_size=7).map(lambda each: " ".join(name + status for name, status in each))
steps = st.lists(st.one_of(st.tuples(st.just("list"), listings), st.tuples(st.just("dead"), names)), max_size=12)


@given(steps=steps, pauses=st.lists(st.sampled_from([1.0, HARD_AGE / 2, HARD_AGE]), min_size=12, max_size=12))
def test_against_a_naive_model(steps: list[tuple[str, str]], pauses: list[float]) -> None:
    state: Known | None = None
    suspect_since: dict[str, float] = {}
    alive: dict[str, Instance] = {}
    now = 0.0
    for (what, text), pause in zip(steps, pauses, strict=False):
        now += pause
        if what == "dead":
            if state is not None:
                state = drop(state, text, now=now)
            if text in suspect_since:
                del alive[text], suspect_since[text]
        else:
            heard = {each.id: each for each in listing(text).instances}
            state = merge(state, listing(text), SERVICE, now=now, clock=now, hard_age=HARD_AGE)
            steady = {key for key, each in alive.items() if key not in suspect_since and each.status is not Status.DRAINING}
            lost = steady - heard.keys()
            for key in alive.keys() - heard.keys():
                if key in suspect_since or (key in lost and len(lost) > len(steady) / 2):
                    suspect_since.setdefault(key, now)
            kept = {key: each for key, each in alive.items() if key in suspect_since}
            suspect_since = {k: w for k, w in suspect_since.items() if k not in heard and now - w < HARD_AGE}
            alive = {**{key: kept[key] for key in suspect_since}, **heard}
        if state is not None:
            assert state.snapshot.instances == tuple(alive[key] for key in sorted(alive))
            assert state.snapshot.suspects == suspect_since.keys() == state.since.keys()
            assert not state.gone.keys() & alive.keys()
