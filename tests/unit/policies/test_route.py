"""Routing: which calls a rule is about, where they go, what is refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from meshlib.balance.layer import Balance
from meshlib.errors import AttemptTimeout, ConfigError, ConnectFailed, ConnectionLost, NoInstances
from meshlib.events import Events
from meshlib.flow import Call, compose, run
from meshlib.keys import header
from meshlib.model import ServiceUrl, Status
from meshlib.policies import Match, Mirror, Rule, route
from meshlib.policies.base import Site
from meshlib.policies.failover import Failover
from meshlib.subsets import Subset
from meshlib.testing import Reply, play
from tests.unit.balance.pickers.naive import chi_square
from tests.unit.flows import (
    SHELLS,
    Answer,
    FakeSource,
    Script,
    call_to,
    fleet,
    governed,
    idle,
    in_turn,
    instance,
)

BACKUP = ServiceUrl("backup")


def versions() -> Any:
    """a and b are v1, c and d v2, in zones by turns."""
    return fleet(
        instance("a", version="1.0", zone="z1", labels={"track": "stable"}),
        instance("b", version="1.1", zone="z2", labels={"track": "stable-old"}),
        instance("c", version="2.0", zone="z1", labels={"track": "canary"}),
        instance("d", version="v2.1", zone="z2"),
    )


def sent(known: Any, policy: route, call: Call, *outcomes: Any, site: Site | None = None) -> str:
    """The instances that attempts go to."""
    script = Script(*(outcomes or (Answer(),)))
    try:
        run(governed(known, policy.bind(site or Site())), call, script).close()
    except (NoInstances, ConnectFailed) as problem:
        script.log.append(type(problem).__name__)
    assert idle(known)
    return " ".join(line.removeprefix("send ") for line in script.log)


# -- which instances

FAIL = ConnectFailed

ROWS = [
    # the subset, how attempts end, where they go (the first by id of those that may be chosen)
    (Subset(), [], "a"),
    (Subset(version="^2"), [], "c"),
    (Subset(version="^2", zone="z2"), [], "d"),
    (Subset(labels={"track": "canary"}), [], "c"),
    (Subset(labels={"track": "stable*"}, zone="z2"), [], "b"),
    (Subset(labels={"track": ["x", "c*y"]}), [], "c"),
    (Subset(zone=["z9", "z2"]), [], "b"),
    # failover stays inside, then goes outside
    (Subset(version="^2"), [FAIL, Answer()], "c d"),
    (Subset(version="^2"), [FAIL, FAIL, Answer()], "c d a"),
    (Subset(version="^2"), [FAIL] * 4, "c d a b ConnectFailed"),
    (Subset(version="^2", strict=True), [FAIL, FAIL], "c d ConnectFailed"),
    (Subset(zone="z2", otherwise=Subset(version="^2")), [FAIL, FAIL, FAIL, Answer()], "b d c a"),
    (Subset(zone="z2", otherwise=Subset(version="^2", strict=True)), [FAIL] * 3, "b d c ConnectFailed"),
    # nobody is of it
    (Subset(version="^3"), [], "a"),
    (Subset(version="^3", strict=True), [], "NoInstances"),
    (Subset(version="^3", otherwise=Subset(version="^2")), [], "c"),
    (Subset(version="^3", strict=True, otherwise=Subset(zone="z2")), [], "b"),
]  # fmt: skip


@pytest.mark.parametrize(("subset", "outcomes", "where"), ROWS, ids=lambda value: str(value)[:60])
def test_subsets(subset: Subset, outcomes: list[Any], where: str) -> None:
    assert sent(versions(), route(Rule(to=subset)), call_to(), *outcomes) == where


def test_without_the_subset_calls_go_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the rows above: a balancer that does not heed it."""
    monkeypatch.setattr("meshlib.balance.narrow.narrowed", lambda pool, _subset: pool)
    assert [sent(versions(), route(Rule(to=row[0])), call_to()) for row in ROWS] == ["a"] * len(ROWS)


def test_so_many_instances_the_same_in_every_process() -> None:
    names = [f"orders-{number}" for number in range(50)]
    one = route(Rule(to=Subset(instances=1)))
    chosen = {sent(fleet(*random.sample(names, 50)), one, call_to()) for _ in range(5)}
    assert len(chosen) == 1
    few = {sent(fleet(*names), route(Rule(to=Subset(instances=3))), call_to(), *[FAIL] * at, Answer()) for at in range(3)}
    known = fleet(*names)
    known.eject(known.find(chosen.copy().pop()))
    assert sent(known, one, call_to()) not in chosen, "the next in rank stands in"
    assert max(len(each.split()) for each in few) == 3


def test_health_comes_before_the_subset_unless_strict() -> None:
    known = versions()
    for name in "cd":
        known.eject(known.find(name))
    assert sent(known, route(Rule(to=Subset(version="^2"))), call_to()) == "a"
    assert sent(known, route(Rule(to=Subset(version="^2", strict=True))), call_to()) == "c", "as a last resort"
    assert sent(known, route(Rule(to=Subset(version="^2", strict=True, reachable=True))), call_to()) == "NoInstances"
    with pytest.raises(NoInstances, match=r"none of 4 instances is a usable one of Subset\(version='\^2', strict=True"):
        balance = Balance(FakeSource(known), in_turn)
        call = call_to()
        call.subset = Subset(version="^2", strict=True, reachable=True)
        balance.pick(call)


def test_draining_ones_of_the_subset_come_after_healthy_ones_elsewhere() -> None:
    known = fleet(
        "a", instance("b", version="2.0", status=Status.DRAINING), instance("m", version="2.0", status=Status.MAINTENANCE)
    )
    assert sent(known, route(Rule(to=Subset(version="^2"))), call_to()) == "a"
    assert sent(known, route(Rule(to=Subset(version="^2", strict=True))), call_to()) == "b"


@pytest.mark.parametrize(
    ("subset", "visited", "where"),
    [
        (Subset(version="^2"), "", "c"),
        (Subset(version="^2"), "c", "d"),
        (Subset(version="^2"), "cd", "a"),
        (Subset(version="^2", strict=True), "c", "d"),
        (Subset(version="^2", strict=True), "dc", "d"),
        (Subset(version="^2", strict=True, zone="z1"), "c", "c"),
        (Subset(version="^2", zone="z1"), "c", "a"),
        (Subset(version="^3", strict=True), "a", "NoInstances"),
    ],
)
def test_a_repeated_call_stays_in_its_subset_and_goes_elsewhere_in_it(subset: Subset, visited: str, where: str) -> None:
    known = versions()
    call = call_to().apart([known.find(name) for name in visited])
    assert sent(known, route(Rule(to=subset)), call) == where


def test_a_repeated_call_is_not_sent_to_the_ejected_where_none_may() -> None:
    known = fleet("a")
    known.eject(known.find("a"))
    call = call_to().apart([known.find("a")])
    assert sent(known, route(Rule(to=Subset(reachable=True))), call) == "NoInstances"


def test_failover_of_a_repeated_call_prefers_those_it_was_not_at() -> None:
    known = versions()
    call = call_to().apart([known.find("d")])
    assert sent(known, route(Rule(to=Subset(version="^2"))), call, FAIL, Answer()) == "c a"
    known = versions()
    call = call_to().apart([known.find("d")])
    assert sent(known, route(Rule(to=Subset(version="^2", strict=True))), call, FAIL, Answer()) == "c d"


# -- which calls

CALLS = [
    (Match(), call_to(), True),
    (Match(method="GET"), call_to(), True),
    (Match(method=["put", "post"]), call_to(method="POST"), True),
    (Match(method="P*"), call_to(), False),
    (Match(path="/v2/orders"), call_to(b"/v2/orders?x=1"), True),
    (Match(path="/v2/orders"), call_to(b"/v2/orders/7"), False),
    (Match(path="/v2/*"), call_to(b"/v2/orders/7?x=1"), True),
    (Match(path="/v2/*"), call_to(b"/v2"), False),
    (Match(path="*/items/*"), call_to(b"/orders/7/items/8"), True),
    (Match(path="/a*b*c"), call_to(b"/axbxc"), True),
    (Match(path="/a*b*c"), call_to(b"/axcxb"), False),
    (Match(path="/a*a"), call_to(b"/a"), False),
    (Match(path="/orders/\u00e9"), call_to(b"/orders/%C3%A9"), True),
    (Match(path="/v2/*"), call_to(b"/%76%32/x"), True),
    (Match(headers={"X-Tenant": "acme*"}), call_to(headers=[(b"x-tenant", b"acme-1")]), True),
    (Match(headers={"X-Tenant": "acme*"}), call_to(headers=[(b"x-tenant", b"Acme-1")]), False),
    (Match(headers={"x-tenant": "*"}), call_to(), False),
    (Match(headers={"x-tenant": "*", "x-b": "1"}), call_to(headers=[(b"x-tenant", b"1"), (b"X-B", b"1")]), True),
    (Match(caller="shop"), call_to(), True),
    (Match(caller="sh*"), call_to(headers=[(b"X-Mesh-Caller", b"till")]), False),
    (Match(caller="till"), call_to(headers=[(b"X-Mesh-Caller", b"till")]), True),
    (Match(arguments={"customer": "7"}), call_to(arguments={"customer": 7}), True),
    (Match(arguments={"customer": ["8", "9*"]}), call_to(arguments={"customer": 7}), False),
    (Match(arguments={"customer": "7"}), call_to(b"/orders?customer=7"), True),
    (Match(method="GET", path="/x", headers={"a": "1"}), call_to(b"/x"), False),
]  # fmt: skip


@pytest.mark.parametrize(("match", "call", "matches"), CALLS, ids=[str(row[0]) for row in CALLS])
def test_matches(match: Match, call: Call, matches: bool) -> None:
    assert match.bind("shop")(call) is matches


def test_nobody_matches_no_caller() -> None:
    assert not Match(caller="*").bind("")(call_to())


def test_the_first_rule_that_matches_wins_and_may_do_nothing() -> None:
    policy = route(
        Rule(when=Match(path="/health")),
        Rule(when=Match(headers={"x-canary": "1"}), to="v2"),
        Rule(when=Match(path="/v1/*"), to="v1"),
        subsets={"v1": Subset(version="^1"), "v2": Subset(version="^2")},
    )
    canary = [(b"x-canary", b"1")]
    assert sent(versions(), policy, call_to(b"/health", headers=canary)) == "a"
    assert sent(versions(), policy, call_to(b"/v1/x", headers=canary)) == "c"
    assert sent(versions(), policy, call_to(b"/v1/x")) == "a"
    assert sent(versions(), policy, call_to(b"/v9/x")) == "a"


def test_a_glob_takes_no_time_however_it_is_made() -> None:
    match = Match(path="/" + "a*" * 200 + "b")
    assert not match.bind()(call_to(b"/" + b"a" * 100_000))


# -- shares

V1, V2 = Subset(version="^1"), Subset(version="^2")


def split(shares: dict[Any, float], *, key: Any = None, site: Site | None = None) -> Callable[[Call], Subset]:
    """The subset that calls are given."""
    layer = route(Rule(split=shares, key=key)).bind(site or Site(service="orders"))

    def subset(call: Call) -> Subset:
        return play([layer], [Reply()], call=call).sent[0].subset  # type: ignore[return-value]

    return subset


def user(number: int) -> Call:
    return call_to(headers=[(b"x-user-id", b"%d" % number)])


@pytest.mark.parametrize("shares", [{V2: 5, V1: 95}, {V2: 0.5, V1: 0.5}, {V1: 1, V2: 2, Subset(zone="z"): 7}], ids=str)
@pytest.mark.parametrize("key", [None, "header:x-user-id"])
def test_shares_are_what_they_say(shares: dict[Subset, float], key: str | None) -> None:
    chance = random.Random(7)
    subset, number = split(shares, key=key, site=Site(service="orders", uniform=chance.random)), 20_000
    seen = Counter(subset(user(each)) for each in range(number))
    total = sum(shares.values())
    assert abs(chi_square([seen[one] for one in shares], [number * share / total for share in shares.values()])) < 4


def test_the_check_of_shares_would_notice() -> None:
    seen = Counter(split({V2: 5, V1: 95}, key="header:x-user-id")(user(each)) for each in range(20_000))
    assert chi_square([seen[V1], seen[V2]], [20_000 * 0.94, 20_000 * 0.06]) > 10


def test_a_key_stays_and_goes_with_the_growing_share_alone() -> None:
    places = [
        [split({V2: part, V1: 100 - part}, key=header("x-user-id"))(user(each)) for each in range(2000)]
        for part in (0, 1, 5, 20, 50, 100)
    ]
    assert set(places[0]) == {V1}
    assert set(places[-1]) == {V2}
    for before, after in pairwise(places):
        assert all(now == V2 for was, now in zip(before, after, strict=True) if was == V2)
        assert before != after


def test_by_lot_keys_do_not_stay() -> None:
    """The control."""
    subset = split({V2: 50, V1: 50})
    assert len({subset(user(7)) for _ in range(100)}) == 2


def test_the_order_of_shares_does_not_matter() -> None:
    one, other = split({V2: 5, V1: 95}, key="header:x-user-id"), split({V1: 95, V2: 5}, key="header:x-user-id")
    assert [one(user(each)) for each in range(500)] == [other(user(each)) for each in range(500)]


def test_other_services_split_otherwise() -> None:
    """Else the same users would be the first everywhere."""
    picks = [
        [split({V2: 50, V1: 50}, key="header:x-user-id", site=Site(service=name))(user(each)) for each in range(1000)]
        for name in ("orders", "stock")
    ]
    same = sum(one == other for one, other in zip(*picks, strict=True))
    assert abs(same - 500) < 4 * 16


def test_a_split_leaves_a_ring_all_kinds_of_keys() -> None:
    """Had the split the hash of the pickers, the 5 % would all be on one stretch of the ring."""
    from meshlib.keys import BITS, digest

    subset = split({V2: 5, V1: 95}, key="header:x-user-id")
    digests = [digest(b"%d" % each) * 10 >> BITS for each in range(20_000) if subset(user(each)) == V2]
    seen = Counter(digests)
    assert abs(chi_square([seen[tenth] for tenth in range(10)], [len(digests) / 10] * 10)) < 4


def test_calls_without_the_key_go_by_lot() -> None:
    subset = split({V2: 50, V1: 50}, key="header:x-user-id")
    assert len({subset(call_to()) for _ in range(100)}) == 2


def test_one_percent_to_one_instance() -> None:
    policy = route(Rule(split={Subset(version="^2", instances=1): 1, V1: 99}, key="header:x-user-id"))
    known = versions()
    balance = compose([policy.bind(Site(service="orders")), Failover(), Balance(FakeSource(known), in_turn)])
    script = Script(*[Answer() for _ in range(2000)])
    for each in range(2000):
        run(balance, user(each), script)
    seen = Counter(script.log)
    assert len(seen) == 2
    assert 5 < min(seen.values()) < 45


# -- elsewhere


def site(backup: Any, events: Events | None = None, **options: Any) -> Site:
    """A site with the service ``backup``."""
    below = governed(backup)
    return Site(service="orders", events=events or Events(), reach=lambda name: (ServiceUrl(name), below), **options)


def elsewhere(known: Any, backup: Any, *outcomes: Any, to: Subset | None = None, method: str = "GET") -> tuple[str, Events]:
    events = Events()
    policy = route(Rule(to=to, failover="backup"))
    where = sent(known, policy, call_to(method=method), *outcomes, site=site(backup, events))
    assert idle(backup)
    return where, events


def test_another_service_when_nobody_is_reachable() -> None:
    assert elsewhere(fleet("a"), fleet("x"))[0] == "a"
    assert elsewhere(fleet(), fleet("x"))[0] == "x"
    assert elsewhere(fleet("a", "b"), fleet("x"), FAIL, FAIL, Answer(), method="POST")[0] == "a b x"
    where, events = elsewhere(fleet("a"), fleet("x"), FAIL, Answer())
    assert where == "a x"
    assert events.counts() == {("route.failover", "orders", ""): 1}


def test_the_ejected_wait_for_whoever_is_well_elsewhere() -> None:
    known = fleet("a")
    known.eject(known.find("a"))
    assert elsewhere(known, fleet("x"))[0] == "x"
    assert elsewhere(known, fleet())[0] == "a", "and are tried when nobody is there either"
    dead = fleet("x")
    assert elsewhere(known, dead, FAIL, Answer())[0] == "x a"


def test_the_control_of_the_ejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.policies.routing._reachable", lambda subset: subset)
    known = fleet("a")
    known.eject(known.find("a"))
    assert elsewhere(known, fleet("x"), FAIL, Answer())[0] == "a x", "each call would find out anew"


def test_a_strict_subset_goes_elsewhere_and_others_stay() -> None:
    assert elsewhere(versions(), fleet("x"), to=Subset(version="^3", strict=True))[0] == "x"
    assert elsewhere(versions(), fleet("x"), to=Subset(version="^3"))[0] == "a"
    assert elsewhere(versions(), fleet("x"), FAIL, FAIL, Answer(), to=Subset(version="^2", strict=True))[0] == "c d x"


@pytest.mark.parametrize("failure", [ConnectionLost, AttemptTimeout])
def test_what_was_sent_stays(failure: Any) -> None:
    with pytest.raises(failure):
        elsewhere(fleet("a"), fleet("x"), failure("cut"), method="POST")


def test_the_caller_sees_how_its_own_service_failed() -> None:
    policy = route(Rule(failover=["backup", "second"]))
    with pytest.raises(ConnectFailed) as caught:
        run(governed(fleet("a"), policy.bind(site(fleet("x")))), call_to(), Script(FAIL, FAIL, FAIL))
    assert caught.value.service == ServiceUrl("orders")


@pytest.mark.parametrize("shell", SHELLS)
def test_failing_over_under_the_shells(shell: str) -> None:
    known, backup, script, answer = fleet("a"), fleet("x"), Script(FAIL, OK := Answer()), []
    policy = route(Rule(failover="backup"))
    call = call_to()
    call.on_close(lambda: answer.append("released"))
    assert SHELLS[shell](governed(known, policy.bind(site(backup))), call, script) is OK
    assert script.calls[1].target == BACKUP
    assert not idle(backup)
    OK.close()
    assert idle(known, backup)
    assert answer == ["released"]


def test_other_services_are_only_where_services_are_called() -> None:
    with pytest.raises(ConfigError, match="the service 'backup'.*only where services are called"):
        route(Rule(failover="backup")).bind(Site())


# -- copies


def copies(mirror: Mirror, call: Call, **options: Any) -> tuple[Call, ...]:
    return play([route(Rule(mirror=mirror)).bind(site(fleet("x"), **options))], [Reply()], call=call).aside


def test_a_copy_says_that_it_is_one_and_goes_nowhere_else() -> None:
    call = call_to(headers=[(b"x-a", b"1")])
    call.tried = tuple(fleet("a").tiers.prime)
    (copy,) = copies(Mirror(to=Subset(version="^3", otherwise=V2)), call)
    assert copy.headers == [(b"x-a", b"1"), (b"X-Mesh-Shadow", b"1")]
    assert call.headers == [(b"x-a", b"1")]
    assert copy.subset == Subset(version="^3", strict=True, otherwise=Subset(version="^2", strict=True))
    (other,) = copies(Mirror(service="backup"), call)
    assert (other.target, other.subset, other.tried) == (BACKUP, None, ())


def test_only_what_can_be_sent_twice_is_copied() -> None:
    assert not copies(Mirror(to=V2), call_to(method="POST", replayable=False))


def test_a_repeated_call_has_one_copy_that_knows_nothing_of_it() -> None:
    call, visited = call_to(), fleet("a").tiers.prime
    (copy,) = copies(Mirror(to=V2), call.apart([]))
    assert copy.visited is None
    assert not copies(Mirror(to=V2), call.apart(list(visited)))


def test_a_percentage_of_calls_is_copied() -> None:
    chance = random.Random(3)
    number = sum(len(copies(Mirror(to=V2, percent=20), call_to(), uniform=chance.random)) for _ in range(5000))
    assert abs(chi_square([number, 5000 - number], [1000, 4000])) < 4


def test_a_copy_that_is_dropped_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.background.AT_ONCE", 0)
    events = Events()
    layer = route(Rule(mirror=Mirror(to=V2))).bind(site(fleet(), events))
    run(governed(versions(), layer), call_to(), Script(Answer()))
    assert events.counts() == {("route.mirror_dropped", "orders", ""): 1}


# -- what is refused

V = {"v1": V1, "v2": V2}

WRONG = [
    (lambda: route({"when": {"path": 3}}), r"route.rules\[0\].when.path .*3 is no pattern.*allowed.*example"),
    (lambda: route({"when": {"pth": "/"}}), r"route.rules\[0\].when.pth .*method, path, headers, caller, arguments are allowed"),
    (lambda: route({"when": {"headers": {"a b": "1"}}}), r"route.rules\[0\].when.headers.a b .*'a b' is not the name"),
    (lambda: route({"when": {"headers": "x"}}), r"route.rules\[0\].when.headers .*'x' is no mapping"),
    (lambda: route({"when": {"headers": {"x": ""}}}), r"when.headers.x .*'' is no pattern"),
    (lambda: route({"when": {"method": []}}), r"when.method .*0 alternatives"),
    (lambda: route({}, {"to": {"version": "latest"}}), r"route.rules\[1\].to.version .*'latest' is none; a range"),
    (lambda: route({"to": {"instances": -1}}), r"to.instances .*-1 is not in 0..100000"),
    (lambda: route({"to": {"instances": True}}), r"to.instances .*True"),
    (lambda: route({"to": {"zone": [3]}}), r"to.zone .*3 is no pattern"),
    (lambda: route({"to": {"labels": {"a": None}}}), r"to.labels.a .*None is no pattern"),
    (lambda: route({"to": {"strict": "yes"}}), r"to.strict .*'yes' is neither true nor false"),
    (lambda: route({"to": {"otherwise": {"zne": "a"}}}), r"to.otherwise.zne .*are allowed"),
    (lambda: route({"to": 7}), r"route.rules\[0\].to .*7 is neither; a Subset or a mapping with labels, version"),
    (lambda: route({"to": "v3"}, subsets=V), r"route.rules\[0\].to .*'v3' is no name of subsets: v1, v2"),
    (lambda: route({"to": "v3"}), r"'v3' is no name of subsets: there are none"),
    (lambda: route({"split": {"v3": 1}}, subsets=V), r"route.rules\[0\].split.v3 .*is no name"),
    (lambda: route({"split": {"v1": -1}}, subsets=V), r"split.v1 .*-1 is not a number from 0 to 1e\+06"),
    (lambda: route({"split": {"v1": 0}}, subsets=V), r"route.rules\[0\].split .*1 shares of together 0"),
    (lambda: route({"split": {"v1": "5%"}}, subsets=V), r"split.v1 .*'5%' is not a number"),
    (lambda: route({"split": 5}), r"split .*5 is no mapping"),
    (lambda: route({"split": {3: 5}}), r"split .*3 is no subset"),
    (lambda: route({"to": "v1", "split": {"v1": 1}}, subsets=V), r"route.rules\[0\].split .*contradicts to"),
    (lambda: route({"key": "path"}), r"route.rules\[0\].key .*no use without split"),
    (lambda: route({"split": {"v1": 1}, "key": "heder:x"}, subsets=V), r"rules\[0\].key .*'heder:x' is no key; header:NAME"),
    (lambda: route({"split": {"v1": 1}, "key": "header:"}, subsets=V), r"rules\[0\].key .*'header:' is no key"),
    (lambda: route({"split": {"v1": 1}, "key": 3}, subsets=V), r"is not a function"),
    (lambda: route({"mirror": {}}), r"route.rules\[0\].mirror.to .*is not given"),
    (lambda: route({"mirror": {"to": "v1", "percent": 0}}, subsets=V), r"mirror.percent .*0 is not a number above 0 to 100"),
    (lambda: route({"mirror": {"to": "v1", "percent": 101}}, subsets=V), r"mirror.percent .*101"),
    (lambda: route({"mirror": {"to": "v9"}}, subsets=V), r"route.rules\[0\].mirror.to .*'v9' is no name"),
    (lambda: route({"mirror": {"service": "a b"}}), r"route.rules\[0\].mirror.service.service name .*'a b'"),
    (lambda: route({"failover": ["ok", "a b"]}), r"route.rules\[0\].failover\[1\].service name .*'a b'"),
    (lambda: route({"failover": 3}), r"failover\[0\] .*3 is no name of a service"),
    (lambda: route("to v2"), r"route.rules\[0\] .*'to v2' is neither; a Rule or a mapping"),
    (lambda: route(*[{}] * 65), r"route.rules .*65; up to 64"),
    (lambda: route(subsets={"v1": {"versoin": "1"}}), r"route.subsets.v1.versoin .*are allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), WRONG, ids=[row[1][:40] for row in WRONG])
def test_what_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        make()
    assert "for example" in str(caught.value)


def test_rules_as_documents_have_them_are_those_of_code() -> None:
    document = {
        "subsets": {"v1": {"version": "^1"}, "v2": {"version": "^2", "labels": {"track": ["canary", "beta*"]}}},
        "rules": [
            {"when": {"method": ["GET"], "headers": {"x-canary": "1"}}, "to": "v2"},
            {"split": {"v2": 5, "v1": 95}, "key": "header:x-user-id", "failover": ["backup"],
             "mirror": {"to": {"version": "^3"}, "percent": 10}},
        ],
    }  # fmt: skip
    code = route(
        Rule(when=Match(method="get", headers={"x-canary": "1"}), to="v2"),
        Rule(
            split={"v1": 95, "v2": 5},
            key="header:x-user-id",
            failover="backup",
            mirror=Mirror(to=Subset(version="^3"), percent=10),
        ),
        subsets={"v2": Subset(version="^2", labels={"track": ["canary", "beta*"]}), "v1": Subset(version="^1")},
    )
    made = route(*document["rules"], subsets=document["subsets"])  # type: ignore[misc, arg-type]
    assert made == code
    assert hash(made) == hash(code)
    assert "Subset(labels={'track': ['canary', 'beta*']}, version='^2')" in repr(code)


def test_a_key_function_that_gives_no_bytes() -> None:
    with pytest.raises(ConfigError, match="not bytes"):
        split({V1: 1, V2: 1}, key=lambda _call: "text")(call_to())


def test_what_a_rule_would_do_is_told() -> None:
    policy = route(
        Rule(name="canary", when=Match(path="/v2/*"), split={"v2": 5, "v1": 95}, key="header:x-user-id",
             mirror=Mirror(service="backup", percent=10), failover="backup"),
        subsets={"v1": V1, "v2": V2},
    )  # fmt: skip
    layer: Any = policy.bind(site(fleet("x")))
    assert str(layer.explain(call_to(b"/v2/x"))) == (
        "rule 0 'canary' (path='/v2/*') → Subset(version='^1') (95.000%) or Subset(version='^2') (5.000%); "
        "a copy of 10% to any instance of backup; with nobody reachable, the service backup"
    )
    assert len(layer.explain(call_to(b"/v2/x", headers=[(b"x-user-id", b"7")])).shares) == 1
    assert str(layer.explain(call_to(b"/"))) == "no rule matches → any instance"
