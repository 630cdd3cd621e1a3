"""The checker can fail: with a defence off, it finds what the defence is for, within the same histories."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib.backends import base, consul_http, consul_wire, etcd, local_db
from meshlib.backends.base import Listing
from meshlib.backends.consul_registry import ConsulRegistry
from meshlib.backends.etcd_watch import Change, _Known
from meshlib.backends.memory import Store
from meshlib.balance import fleet
from meshlib.discovery.follow import Follower
from meshlib.discovery.view import View
from meshlib.model import Instance
from tests.model.checker import Violation, play
from tests.model.history import Step, generate, shorten
from tests.model.servers import Etcd
from tests.model.subjects import PROVIDING
from tests.model.test_histories import HISTORIES, KINDS, fails, hunt, maker, steps_of

Patch = Callable[[pytest.MonkeyPatch], None]


def no_index_rule(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(consul_http, "next_index", lambda last, answered: max(last, answered, 1))


def no_stale_bound(patch: pytest.MonkeyPatch) -> None:
    async def old(_: Any, __: Any, answer: Any) -> Any:
        return answer

    patch.setattr(ConsulRegistry, "_fresh", old)


def no_dedupe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        consul_wire, "unique", lambda found: tuple(sorted((read.instance for _, read in found), key=lambda one: one.id))
    )


def critical_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(consul_wire.Entry, "critical", property(lambda _: []))


def no_order(patch: pytest.MonkeyPatch) -> None:
    def unordered(instances: list[Instance], revision: object = "") -> Listing:
        return Listing(tuple(instances), str(revision))

    patch.setattr(base.Listing, "of", unordered)


def no_order_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(etcd, "sorted", lambda items: list(items)[::-1], raising=False)


def hastily(patch: pytest.MonkeyPatch) -> None:
    """The leader is not asked before a watch is opened."""
    confirm, opened = _Known.confirm, set[int]()

    async def later(known: _Known) -> Change:
        if known.revision and id(known) not in opened:
            opened.add(id(known))
            return Change(known.revision, {})
        return await confirm(known)

    patch.setattr(_Known, "confirm", later)


def unconfirmed(patch: pytest.MonkeyPatch) -> None:
    async def trust(known: _Known) -> Change:
        return Change(known.revision, {})

    patch.setattr(_Known, "confirm", trust)


def any_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(etcd.View, "_read", lambda view, pair: _decoded(view, pair))


def _decoded(view: Any, pair: Any) -> Instance | None:
    try:
        return etcd.decode(pair.value, view._service)
    except etcd.InvalidAnswer:
        return None


def leases_unwatched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "until_expiry", lambda _: base.CONFIRM)


def one_file(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(local_db, "identity", lambda _: (0, 0))
    opened = local_db.open_file

    def with_that(*args: Any, **more: Any) -> Any:
        handle = opened(*args, **more)
        handle.identity = (0, 0)
        return handle

    patch.setattr(local_db, "open_file", with_that)


def suspects_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Follower, "_drop", lambda _, __: None)


def always_live(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(View, "live", property(lambda _: True, lambda _, __: None), raising=False)


def maintenance_ignored(patch: pytest.MonkeyPatch) -> None:
    def all_of_them(endpoints: Any, suspects: Any, **_: Any) -> fleet.Tiers:
        everyone = list(endpoints)
        trusted = [end for end in everyone if end.instance.id not in suspects]
        return fleet.Tiers(tuple(trusted), tuple(end for end in everyone if end not in trusted))

    patch.setattr(fleet, "sort", all_of_them)


CONTROLS: list[tuple[str, Patch, str]] = [
    ("consul", no_index_rule, "converged"),
    ("consul", no_stale_bound, "not what the registry listed"),
    ("consul", no_dedupe, "not ordered and unique"),
    ("consul", critical_ones, "not what the registry listed|converged"),
    ("etcd", hastily, "converged|confirmed at"),
    ("etcd", unconfirmed, "converged|confirmed at"),
    ("etcd", any_name, "never registered|not ordered"),
    ("etcd", no_order_kept, "not ordered and unique"),
    ("memory", no_order, "not ordered and unique"),
    ("memory", leases_unwatched, "converged"),
    ("memory", suspects_kept, "suspects that nobody answers for"),
    ("memory", always_live, "live though nothing answers"),
    ("memory", maintenance_ignored, "can be picked"),
    ("local", one_file, "converged|live though|not what|confirmed at"),
]


@pytest.mark.parametrize(("kind", "off", "found"), CONTROLS, ids=[f"{kind}-{off.__name__}" for kind, off, _ in CONTROLS])
def test_with_a_defence_off(kind: str, off: Patch, found: str, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off(monkeypatch)
    make = maker(kind, room)
    for seed in range(HISTORIES):
        try:
            play(make, seed, steps_of(kind, seed))
        except Violation as violation:
            assert re.search(found, str(violation)), str(violation)
            return
    pytest.fail(f"{HISTORIES} histories of {kind} saw nothing of {off.__name__}")


LOST = "start(1, 7) start(2, 0) start(1, 3) kick(5, 1) wipe(10, 3) start(9, 3)"
"""etcd:1781, made short: the way to the registry dies without a word, it loses its state, and comes as far again."""


def test_a_store_that_lost_its_state_and_came_as_far_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = (0.0, 0.0, 0.05, 0.0, 0.005, 0.05)
    parts = [re.fullmatch(r"(\w+)\((\d+),(\d+)\)", part).groups() for part in LOST.replace(", ", ",").split()]  # type: ignore[union-attr]
    steps = [Step(pause, action, int(who), int(how)) for pause, (action, who, how) in zip(pauses, parts, strict=True)]
    play(Etcd, 1781, steps)

    async def by_revision(known: _Known) -> Change:
        answer = await known.gateway.prefix(known.prefix, keys_only=True)
        newer = any(pair.mod_revision > known.revision for pair in answer.kvs)
        if newer or answer.header.revision < known.revision or answer.count != len(known.keys):
            return await known.list(serializable=False)
        return Change(answer.header.revision, {})

    monkeypatch.setattr(_Known, "confirm", by_revision)
    with pytest.raises(Violation, match="not converged"):
        play(Etcd, 1781, steps)


def test_a_history_that_fails_is_made_short_and_told(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suspects_kept(monkeypatch)
    monkeypatch.delenv("MESHLIB_HISTORY", raising=False)
    with pytest.raises(pytest.fail.Exception) as failed:
        hunt("memory", room, HISTORIES)
    text = str(failed.value)
    seed = int(re.search(r"MESHLIB_HISTORY=memory:(\d+) plays it again", text)[1])  # type: ignore[index]
    steps = steps_of("memory", seed)
    short = shorten(steps, lambda some: fails(KINDS["memory"], seed, some))
    assert len(short) < len(steps)
    assert all(str(step) in text for step in short)


@pytest.mark.parametrize("kind", KINDS)
def test_a_history_goes_the_same_way_each_time(kind: str, room: Path) -> None:
    def told(seed: int) -> list[str]:
        lines: list[str] = []
        play(maker(kind, room), seed, steps_of(kind, seed), lines.append)
        return [re.sub(r"local/\d+|the local registry \S+ \S+", "", line) for line in lines]

    for seed in range(20):
        assert told(seed) == told(seed)


def test_what_a_history_is_made_of() -> None:
    actions = {**PROVIDING, **KINDS["etcd"].faults}
    steps = [step for seed in range(500) for step in generate(seed, actions)]
    assert {step.action for step in steps} == set(actions)
    assert generate(7, actions) == generate(7, actions) != generate(8, actions)


def test_shortening() -> None:
    steps = [Step(0, str(number), 0, 0) for number in range(9)]
    assert shorten(steps, lambda some: {"2", "7"} <= {step.action for step in some}) == [steps[2], steps[7]]
