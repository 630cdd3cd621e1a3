"""Mod-hash and the ring: who gets what, what moves, and what bounds the load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from meshlib.balance.fleet import Fleet
from meshlib.balance.pickers import (
    Choose,
    ConsistentHash,
    ModHash,
    PeakEwma,
    Picker,
    Sticky,
    Subset,
    header,
    named,
    round_robin,
)
from meshlib.balance.pickers.hashing import Bound
from meshlib.balance.pickers.ring import Ring
from meshlib.balance.tiers import Pool
from meshlib.errors import ConfigError, ConnectFailed
from meshlib.keys import digest
from meshlib.outcome import Outcome
from meshlib.testing import FakeClock
from tests.unit.balance.pickers.naive import CIRCLE, NaiveRing, by_path, calls, chi_square
from tests.unit.flows import SHELLS, Answer, Script, call_to, fleet, governed, instance, update

KEYS = calls(f"/users/{number}" for number in range(20_000))
FEW = KEYS[:2000]


def names(count: int) -> list[str]:
    return [f"orders-{number:04d}" for number in range(count)]


def pool_of(known: Fleet) -> Pool:
    return Pool(known.tiers.usable, known.tiers.members, known.tiers.memo)


def owners(picker: Picker, known: Fleet, keys: list[Any] = FEW) -> list[str]:
    return [choose.instance.id for choose in map(picker(pool_of(known)), keys)]


def moved(before: list[str], after: list[str]) -> list[str]:
    """Whose they were."""
    return [one for one, other in zip(before, after, strict=True) if one != other]


def out(known: Fleet, *ids: str) -> None:
    for name in ids:
        endpoint = known.find(name)
        assert endpoint is not None
        assert known.eject(endpoint)


# -- mod-hash


def test_mod_hash_is_the_key_modulo_the_members() -> None:
    known = fleet(*names(7))
    assert owners(ModHash(by_path), known) == [names(7)[digest(call.path) % 7] for call in FEW]


def test_mod_hash_is_even() -> None:
    seen = Counter(owners(ModHash(by_path), fleet(*names(10)), KEYS))
    assert abs(chi_square([seen[name] for name in names(10)], [len(KEYS) / 10] * 10)) < 4


def test_mod_hash_has_the_next_one_stand_in() -> None:
    known = fleet(*names(5))
    before = owners(ModHash(by_path), known)
    out(known, "orders-0003", "orders-0004")
    after = owners(ModHash(by_path), known)
    stands_in = {"orders-0003": "orders-0000", "orders-0004": "orders-0000"}
    assert after == [stands_in.get(one, one) for one in before]


# -- the ring: what moves


@pytest.mark.parametrize("size", [10, 50])
def test_when_one_leaves_only_its_keys_move(size: int) -> None:
    picker = ConsistentHash(by_path, load=None)
    before = owners(picker, fleet(*names(size)), KEYS)
    for gone in names(size):
        after = owners(picker, fleet(*(name for name in names(size) if name != gone)), KEYS)
        lost = moved(before, after)
        assert set(lost) == {gone}
        assert len(lost) <= 1.2 * len(KEYS) / size


def test_the_control_mod_hash_moves_nearly_all() -> None:
    before, after = (owners(ModHash(by_path), fleet(*names(size)), KEYS) for size in (10, 9))
    assert len(moved(before, after)) > 0.85 * len(KEYS)


def test_one_that_joins_takes_only_what_it_keeps() -> None:
    picker = ConsistentHash(by_path, load=None)
    before, after = owners(picker, fleet(*names(10))), owners(picker, fleet(*names(11)))
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"orders-0010"}


def test_of_1000_hardly_anybody_has_more_than_its_share_and_a_fifth() -> None:
    ring = Ring(names(1000), [160] * 1000, 160)
    shares, behind = [0.0] * 1000, 1.0
    for point, owner in zip(ring.points, ring.owners, strict=True):
        shares[owner & 0x3FFFFF] += point - behind
        behind = point
    assert sum(shares) == pytest.approx(1.0)
    assert sum(share > 1.2 / 1000 for share in shares) <= 15
    assert max(shares) < 1.3 / 1000


def test_one_that_is_out_has_its_keys_back() -> None:
    known, picker = fleet(*names(10)), ConsistentHash(by_path, load=None)
    before = owners(picker, known)
    out(known, "orders-0003")
    assert set(moved(before, owners(picker, known))) == {"orders-0003"}
    endpoint = known.find("orders-0003")
    assert endpoint is not None
    assert endpoint.ejected is not None
    known.restore(endpoint, endpoint.ejected)
    assert owners(picker, known) == before


def test_the_ring_survives_ejections_and_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr("meshlib.balance.pickers.hashing.Ring", lambda *args: made.append(1) or Ring(*args))
    known = fleet(*names(5))
    for picker in (ConsistentHash(by_path), ConsistentHash(header("x"), load=None)):
        owners(picker, known, FEW[:1])
    out(known, "orders-0001")
    owners(ConsistentHash(by_path), known, FEW[:1])
    assert len(made) == 1
    update(known, *names(6))
    owners(ConsistentHash(by_path), known, FEW[:1])
    assert len(made) == 2, "the control: other members, another ring"


def test_few_usable_ones_of_many_have_the_same_places() -> None:
    """They have a ring of their own, so that no key walks past a thousand that are out: it is the same but for them."""
    known, picker = fleet(*names(200)), ConsistentHash(by_path, load=None)
    out(known, *names(200)[2:])
    naive = NaiveRing(pool_of(known), 160)
    assert (Ring, 160) not in pool_of(known).memo
    assert owners(picker, known, FEW[:100]) == [naive.owner(digest(call.path)).instance.id for call in FEW[:100]]
    assert (Ring, 160) not in known.tiers.memo, "it is not kept: it is of those that are usable now"


# -- the ring: shares


def test_keys_fall_evenly_on_the_circle_of_weighted_instances() -> None:
    """Against the exact lengths of the arcs, by chi-square; the control: as if all weighed the same."""
    known = fleet(*(instance(name, weight=1 + number % 5) for number, name in enumerate(names(25))))
    pool = pool_of(known)
    naive = NaiveRing(pool, 160)
    arcs: Counter[str] = Counter()
    behind = naive.points[-1][0] - (1 << 30)
    for place, _, one in naive.points:
        arcs[one.instance.id] += place - behind
        behind = place
    seen = Counter(owners(ConsistentHash(by_path, load=None), known, KEYS))
    got = [seen[name] for name in names(25)]
    assert abs(chi_square(got, [len(KEYS) * arcs[name] / (1 << 30) for name in names(25)])) < 4
    assert chi_square(got, [len(KEYS) / 25] * 25) > 100


def test_shares_are_as_the_weights() -> None:
    weights = [1, 2, 5, 10]
    known = fleet(*(instance(name, weight=weights[number % 4]) for number, name in enumerate(names(100))))
    seen = Counter(owners(ConsistentHash(by_path, load=None), known, KEYS))
    for number, weight in enumerate(weights):
        share = sum(seen[name] for name in names(100)[number::4]) / len(KEYS)
        assert share == pytest.approx(weight / sum(weights), rel=0.1)


def test_a_change_of_weight_moves_few_keys() -> None:
    """Its points are the same as far as it keeps them."""
    picker = ConsistentHash(by_path, load=None)
    listed = [instance(name, weight=100) for name in names(20)]
    before = owners(picker, fleet(*listed), KEYS)
    after = owners(picker, fleet(*listed[:-1], instance(names(20)[-1], weight=50)), KEYS)
    assert len(moved(before, after)) < 0.1 * len(KEYS)


@pytest.mark.parametrize(("weight", "points"), [(0, [1, 240, 240]), (10_000, [480, 1, 1])])
def test_extreme_weights(weight: int, points: list[int]) -> None:
    known = fleet(instance("a", weight=weight), instance("b"), instance("c"))
    pool = Pool(known.tiers.members, known.tiers.members)
    most = Counter(choose.instance.id for choose in map(ConsistentHash(by_path, load=None)(pool), FEW)).most_common(1)[0][0]
    (counts, ring) = pool.memo[Ring, 160]
    assert counts == points
    assert len(ring.points) == sum(points) + 1
    assert (most == "a") is (weight > 0)


def test_nobody_wants_any() -> None:
    known = fleet(instance("a", weight=0), instance("b", weight=0))
    assert set(owners(ConsistentHash(by_path), known)) == {"a", "b"}


# -- the ring: the bound on load


def hot(load: float | None, size: int = 10, attempts: int = 100) -> list[int]:
    """How many attempts each has after all of them had one key."""
    known = fleet(*names(size))
    choose = ConsistentHash(by_path, load=load, clock=FakeClock())(pool_of(known))
    for _ in range(attempts):
        choose(FEW[0]).in_flight.add(object())
    return sorted((len(one.in_flight) for one in known.tiers.prime), reverse=True)


def test_a_key_that_everybody_asks_for() -> None:
    assert hot(1.25)[0] == 13  # the ceiling of 1.25 * 100 / 10
    assert hot(3.0)[0] == 30
    assert hot(None)[0] == 100, "the control: no bound"


def test_it_returns_to_its_own_when_there_is_room() -> None:
    known = fleet(*names(4))
    choose = ConsistentHash(by_path)(pool_of(known))
    own = choose(FEW[0])
    own.in_flight.add(1)
    assert choose(FEW[0]) is not own
    assert choose(FEW[0]) is choose(FEW[0]), "the next clockwise, always the same"
    own.in_flight.clear()
    assert choose(FEW[0]) is own


def test_one_that_is_out_counts_for_nothing() -> None:
    """What hangs at an ejected one is no reason to load the others."""
    known = fleet(*names(4))
    gone = known.tiers.members[0]
    gone.in_flight |= set(range(1000))
    out(known, gone.instance.id)
    choose = ConsistentHash(by_path, clock=FakeClock())(pool_of(known))
    for _ in range(30):
        choose(FEW[0]).in_flight.add(object())
    assert max(len(one.in_flight) for one in known.tiers.prime) == 13


def test_the_count_is_good_for_sixteen_times_as_long_as_it_took() -> None:
    clock, counts = FakeClock(), []
    endpoints = fleet(*names(4)).tiers.prime

    class Slow(tuple[Any, ...]):
        """Takes a second to count."""

        def __iter__(self) -> Any:
            counts.append(clock.now)
            clock.advance(1.0)
            return super().__iter__()

    bound, start = Bound(Slow(endpoints), [1] * 4, 1.25, clock), clock.now
    for _ in range(40):
        bound.full(0, endpoints[0])
        clock.advance(0.5)
    assert counts == [start, start + 17.0]


@pytest.mark.parametrize(("patience", "held"), [(64, True), (10_000, False)], ids=["doubted", "the control"])
def test_a_count_older_than_the_attempts_is_doubted(monkeypatch: pytest.MonkeyPatch, patience: int, held: bool) -> None:
    """By a count of nothing everybody is full, and everything would go to the neighbour of the one asked for."""

    class Old(Bound):
        def count(self, now: float) -> None:
            if recounting:
                super().count(now)

        def recount(self) -> None:
            recounting.append(1)
            super().recount()
            recounting.clear()

    recounting: list[int] = []
    monkeypatch.setattr("meshlib.balance.pickers.hashing.Bound", Old)
    monkeypatch.setattr("meshlib.balance.pickers.hashing.PATIENCE", patience)
    known = fleet(*names(4))
    choose = ConsistentHash(by_path, clock=FakeClock())(pool_of(known))
    for _ in range(100):
        choose(FEW[0]).in_flight.add(object())
    assert (max(len(one.in_flight) for one in known.tiers.prime) <= 32) is held


# -- all of them


@pytest.mark.parametrize("make", [ModHash, ConsistentHash])
def test_calls_without_a_key_go_to_the_inner_picker(make: Callable[..., Any]) -> None:
    picker = make(header("x-user-id"), inner=round_robin)
    choose: Choose = picker(pool_of(fleet(*names(5))))
    assert Counter(choose(call_to()).instance.id for _ in range(50)) == dict.fromkeys(names(5), 10)
    keyed = call_to(headers=[(b"X-User-Id", b"7")])
    assert len({choose(keyed) for _ in range(50)}) == 1


@pytest.mark.parametrize("make", [ModHash, ConsistentHash])
def test_the_inner_picker_learns(make: Callable[..., Any]) -> None:
    endpoint = fleet("a").tiers.prime[0]
    make(by_path, inner=PeakEwma()).observe(endpoint, 0.01, Outcome.ANSWERED, 5.0)
    assert endpoint.measured > 0
    assert not hasattr(make(by_path), "observe")


@pytest.mark.parametrize("make", [ModHash, ConsistentHash])
def test_a_key_that_is_not_bytes(make: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="gave a str, not bytes"):
        make(lambda _call: "text")(pool_of(fleet("a", "b")))(call_to())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ModHash("x-user-id"), 'header\\("x-user-id"\\)'),  # type: ignore[arg-type]
        (lambda: ConsistentHash(None), "ConsistentHash\\(key=\\)"),  # type: ignore[arg-type]
        (lambda: ConsistentHash(by_path, points=0), "points=160"),
        (lambda: ConsistentHash(by_path, points=True), "points=160"),
        (lambda: ConsistentHash(by_path, points=10_001), "1..10000"),
        (lambda: ConsistentHash(by_path, load=1), "load=1.25"),
        (lambda: ConsistentHash(by_path, load=float("inf")), "load=1.25"),
        (lambda: ConsistentHash(by_path, load="1.25"), "load=1.25"),  # type: ignore[arg-type]
        (lambda: ModHash(by_path, inner="random"), "inner"),  # type: ignore[arg-type]
    ],
)
def test_options_that_make_no_sense(make: Callable[[], Picker], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def test_when_its_own_does_not_answer_the_next_one_clockwise_is_tried() -> None:
    known, call = fleet(*names(10)), FEW[0]
    points = sorted(NaiveRing(pool_of(known), 160).points, key=lambda point: (point[0] - digest(call.path)) % CIRCLE)
    first, second = list(dict.fromkeys(one.instance.id for _, _, one in points))[:2]
    script = Script(ConnectFailed, Answer())
    SHELLS["run"](governed(known, picker=ConsistentHash(by_path)), call, script).close()
    assert script.log == [f"send {first}", f"send {second}"]
    script = Script(Answer())
    SHELLS["run"](governed(known, picker=ConsistentHash(by_path)), call, script)
    assert script.log == [f"send {second}"], "the first is ejected now"


@pytest.mark.parametrize(
    ("name", "kind"), [("mod_hash", ModHash), ("consistent_hash", ConsistentHash), ("sticky", Sticky), ("subset", Subset)]
)
def test_names_of_pickers(name: str, kind: type) -> None:
    assert isinstance(named(name), kind)


def test_what_the_named_ones_go_by() -> None:
    pool = pool_of(fleet(*names(50)))
    for name in ("mod_hash", "consistent_hash"):
        choose = named(name)(pool)
        assert len({choose(call_to(b"/orders/7?page=%d" % page)) for page in range(20)}) == 1
        assert len({choose(call_to(b"/orders/%d" % number)) for number in range(20)}) > 5
    choose = named("sticky")(pool)
    cookies = [(b"Cookie", b"session=7")]
    assert len({choose(call_to(b"/orders/%d" % number, headers=cookies)) for number in range(20)}) == 1
