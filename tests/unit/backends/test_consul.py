"""Consul's answers without a Consul: hostile ones, broken ones, and those that a healthy server never gives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.backends import consul_http, consul_wire, open_backend
from meshlib.backends.base import Backend
from meshlib.backends.consul import backend_over
from meshlib.backends.consul_http import follow, next_index
from meshlib.backends.http import ControlClient
from meshlib.errors import (
    CasConflict,
    ConfigError,
    InvalidAnswer,
    MissingExtra,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
)
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings

pytestmark = pytest.mark.anyio

ORDERS = ServiceUrl("orders")
Handler = Callable[[httpx2.Request], Any]


def backend(handler: Handler, hosts: int = 1, **settings: Any) -> Backend:
    names = tuple((f"host{number}", 8500) for number in range(hosts))
    client = ControlClient(names, timeout=30, transport=httpx2.MockTransport(handler))
    return backend_over(client, Settings(registry="consul://host0", **settings), names)


PASSING = (("service:a", "passing"),)


def entry(ident: str = "a", *, checks: tuple[tuple[str, str], ...] = PASSING, **service: Any) -> dict[str, Any]:
    plain = {"ID": ident, "Service": "orders", "Address": "10.0.0.5", "Port": 8080, "Meta": {}, "ModifyIndex": 5}
    return {
        "Node": {"Node": "n1", "Address": "10.0.0.1"},
        "Service": {**plain, **service},
        "Checks": [{"CheckID": ident, "Status": status} for ident, status in checks],
    }


def answer(content: Any, *, index: object = 7, status: int = 200, **headers: str) -> httpx2.Response:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    extra = {f"X-Consul-{key}": value for key, value in headers.items()}
    return httpx2.Response(status, headers={"X-Consul-Index": str(index), **extra}, content=body)


def listing(*entries: dict[str, Any]) -> Handler:
    return lambda _: answer(list(entries))


async def fetch(handler: Handler) -> list[Instance]:
    return list((await backend(handler).registry.fetch(ORDERS)).instances)


# Listings


async def test_a_spring_registration() -> None:
    meta = {"secure": "true", "zone": "eu-1", "hint": "h", "API_VERSION": "2"}
    (one,) = await fetch(listing(entry("orders-8443", Port=8443, Meta=meta, Tags=["contextPath=/x"])))
    assert one == Instance(
        "orders", "orders-8443", "10.0.0.5", 8443, "https", zone="eu-1", labels={"hint": "h", "API_VERSION": "2"}
    )


@pytest.mark.parametrize("meta", [None, {}, {"weight": "heavy"}, {"weight": ""}, {"weight": "-1"}, {"weight": "1.5"}])
async def test_a_registration_without_our_meta(meta: object) -> None:
    (one,) = await fetch(listing(entry(Meta=meta)))
    assert (one.scheme, one.weight, one.labels) == ("http", 1, {})


async def test_the_address_of_the_node_where_the_service_has_none() -> None:
    assert [one.host for one in await fetch(listing(entry(Address="")))] == ["10.0.0.1"]


@pytest.mark.parametrize(
    "bad",
    [
        {"Address": "2130706433"}, {"Address": "x@evil"}, {"Address": "10.0.0.5\r\nX: 1"}, {"Address": "evil/path"},
        {"Address": "a" * 300}, {"Port": 0}, {"Port": 70_000}, {"Port": "80"}, {"Port": 10**30}, {"ID": "a b"}, {"ID": ""},
        {"ID": 5}, {"Meta": {"mesh-status": "odd"}}, {"Meta": {"zone": "a\nb"}}, {"Meta": {"a": {}}}, {"Meta": 1},
    ],
)  # fmt: skip
async def test_one_malformed_instance_is_left_out(bad: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    consul_wire._warn.cache_clear()
    handler = listing({**entry("bad"), "Service": {**entry("bad")["Service"], **bad}}, entry("good"))
    registry = backend(handler).registry
    with caplog.at_level(logging.WARNING, "meshlib"):
        for _ in range(3):
            assert [one.id for one in (await registry.fetch(ORDERS)).instances] == ["good"]
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{}", b"5", b'"x"', b"\xff\xfe", b"[" * 100_000, b'[{"x":' * 50_000, b'[{"Service":{"ID":"a"'],
)
async def test_an_unreadable_listing(body: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        await fetch(lambda _: answer(body))


async def test_text_that_is_no_utf8_costs_its_entry_only() -> None:
    bad = msgspec.json.encode(entry("bad", Address="XX")).replace(b"XX", b"\xff")
    assert [one.id for one in await fetch(lambda _: answer(b"[" + bad + b"," + msgspec.json.encode(entry("good")) + b"]"))] == [
        "good"
    ]
    with pytest.raises(InvalidAnswer):
        await fetch(lambda _: answer(b'[{"\xff":1}'))


async def test_deep_json_in_a_field_nobody_reads() -> None:
    deep = b'[{"Service":{"ID":"a","Port":1},"Extra":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"
    with pytest.raises(InvalidAnswer):
        await fetch(lambda _: answer(deep))


@pytest.mark.parametrize("index", ["", "x", "-5", "9" * 5000, "1e3", "²"])
async def test_an_index_that_is_none(index: str) -> None:
    headers = [(b"X-Consul-Index", index.encode())]
    listed = await backend(lambda _: httpx2.Response(200, headers=headers, content=b"[]")).registry.fetch(ORDERS)
    assert listed.revision == "0"


async def test_no_index_is_no_consul() -> None:
    with pytest.raises(InvalidAnswer):
        await fetch(lambda _: httpx2.Response(200, content=b"[]"))
    with pytest.raises(InvalidAnswer):
        await fetch(lambda _: httpx2.Response(301, headers={"Location": "http://evil/"}))


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([], "up"),
        ([("serfHealth", "passing"), ("service:a", "warning")], "up"),
        ([("service:a", "critical")], None),
        ([("serfHealth", "critical"), ("service:a", "passing")], None),
        ([("service:a", "passing"), ("_service_maintenance:a", "critical")], "maintenance"),
        ([("service:a", "passing"), ("_node_maintenance", "critical")], "maintenance"),
        ([("service:a", "critical"), ("_service_maintenance:a", "critical")], None),
    ],
)
async def test_which_checks_count(checks: list[tuple[str, str]], status: str | None) -> None:
    found = await fetch(listing(entry(checks=tuple(checks))))
    assert [one.status.value for one in found] == ([status] if status else [])


OURS = {"mesh-generation": ""}


async def test_ours_on_two_agents_is_one() -> None:
    maintained = (("_service_maintenance:a", "critical"),)
    old = entry(Meta={**OURS, "version": "1"}, ModifyIndex=5)
    new = entry(Meta={**OURS, "version": "2"}, ModifyIndex=9, Port=8081)
    for order in ((old, new), (new, old)):
        assert [(one.id, one.version) for one in await fetch(listing(*order))] == [("a", "2")]
    taken_out = entry(Meta={**OURS, "version": "3"}, ModifyIndex=99, checks=maintained)
    assert [one.version for one in await fetch(listing(old, taken_out))] == ["1"]


async def test_strangers_with_one_id_are_kept_apart_by_their_address() -> None:
    first = entry(Address="10.0.0.1", CreateIndex=3)
    second = entry(Address="10.0.0.2", CreateIndex=8)
    again = entry(Address="10.0.0.1", CreateIndex=9, ModifyIndex=9)
    for order in ((first, second), (second, first), (first, second, again)):
        found = await fetch(listing(*order))
        assert sorted(one.host for one in found) == ["10.0.0.1", "10.0.0.2"]
        assert len({one.id for one in found}) == 2
    assert {one.id: one.host for one in await fetch(listing(second, first))} == {"a": "10.0.0.1", "a@10.0.0.2:8080": "10.0.0.2"}


async def test_namespaces() -> None:
    spaced, elsewhere = {"mesh-namespace": "shop.prod"}, {"mesh-namespace": "x.y"}
    entries = [entry("plain"), entry("spaced", Meta=spaced), entry("other", Meta=elsewhere)]
    asked = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return answer(entries)

    registry = backend(handler).registry
    assert [one.id for one in (await registry.fetch(ORDERS)).instances] == ["plain"]
    assert [one.id for one in (await registry.fetch(ServiceUrl("orders", "shop.prod"))).instances] == ["spaced"]
    assert asked == ["/v1/health/service/orders", "/v1/health/service/shop-prod-orders"]


async def test_names_of_services() -> None:
    catalogue = {
        "consul": [], "orders": [], "Legacy": None, "bad name": [], "shop-prod-orders": ["x", "mesh-namespace=shop.prod"],
        "a-b-c": ["mesh-namespace=a.b"],
    }  # fmt: skip
    registry = backend(lambda _: answer(catalogue)).registry
    assert await registry.services("") == ["legacy", "orders"]
    assert await registry.services("shop.prod") == ["orders"]
    for odd in ([], {"a": 5}, {"a": [5]}):
        with pytest.raises(InvalidAnswer):
            await backend(lambda _, odd=odd: answer(odd)).registry.services("")


def read(line: Any, service: ServiceUrl = ORDERS) -> tuple[Instance, ...]:
    return consul_wire.Reader(service).read(msgspec.json.encode([line]))


def test_a_reader_parses_what_changed_only() -> None:
    reader = consul_wire.Reader(ORDERS)
    first = reader.read(msgspec.json.encode([entry("a"), entry("b")]))
    second = reader.read(msgspec.json.encode([entry("a"), entry("b", Port=9)]))
    assert second[0] is first[0]
    assert second[1].port == 9
    assert reader.read(msgspec.json.encode([entry("b", Port=9, checks=(("_node_maintenance", "critical"),))]))[0] != second[1]


@pytest.mark.parametrize("changed", [{"Port": 9}, {"Address": "10.0.0.6"}, {"Meta": {**OURS, "zone": "b"}}])
def test_a_reader_sees_a_change_whatever_its_index(changed: dict[str, Any]) -> None:
    reader = consul_wire.Reader(ORDERS)  # servers that lost their state count from one again
    before = reader.read(msgspec.json.encode([entry("a", Meta=OURS, ModifyIndex=5)]))
    after = reader.read(msgspec.json.encode([entry("a", **{"Meta": OURS, "ModifyIndex": 5, **changed})]))
    assert before[0] != after[0] == read(entry("a", **{"Meta": OURS, **changed}))[0]


@pytest.mark.parametrize("where", [b'"zone":"zone-a"', b'"ID":"a"', b'"Node":"n1"'])
def test_an_entry_that_is_no_text_costs_itself_only(where: bytes) -> None:
    bad = msgspec.json.encode(entry("a", Meta={**OURS, "zone": "zone-a"}))
    broken = bad.replace(where, where[:-2] + b"\xff" + where[-1:])
    assert broken != bad
    found = consul_wire.Reader(ORDERS).read(b"[" + broken + b"," + msgspec.json.encode(entry("b")) + b"]")
    assert [one.id for one in found] == (["a", "b"] if where.startswith(b'"Node') else ["b"])  # what we do not read is not ours


def test_a_reader_remembers_what_is_listed_only() -> None:
    reader = consul_wire.Reader(ORDERS)
    for number in range(50):
        reader.read(msgspec.json.encode([entry(f"a-{number}")]))
    assert len(reader._known) == 1


# Meta

text = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60)
label_keys = st.one_of(
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,40}\Z"),
    st.sampled_from(["secure", "zone", "weight", "version", "mesh-status", "mesh-more-0", "consul-x", "label", "a.b/c"]),
)
instances = st.builds(
    lambda **fields: Instance.parse({"service": "orders", "id": "a", "host": "10.0.0.5", "port": 80, **fields}),
    scheme=st.sampled_from(["http", "https"]), version=text, zone=text, generation=text,
    weight=st.integers(0, 10_000), status=st.sampled_from(["up", "draining", "maintenance"]),
    namespace=st.sampled_from(["", "shop.prod"]),
    labels=st.dictionaries(label_keys, text | st.just("ä" * 512), max_size=12),
)  # fmt: skip


@given(instances)
def test_nothing_is_lost_in_meta(instance: Instance) -> None:
    meta = consul_wire.meta(instance)
    assert len(meta) <= 64
    for key, value in meta.items():
        assert consul_wire._META_KEY.fullmatch(key)
        assert len(value.encode()) <= 512
    assert read(entry(instance.id, Address="10.0.0.5", Port=80, Meta=meta), instance.url.name) == (instance,)


def test_sixty_four_labels_fit() -> None:
    labels = {f"label-{number}": "x" * 300 for number in range(64)}
    instance = Instance.parse({"service": "orders", "id": "a", "host": "10.0.0.5", "port": 80, "labels": labels})
    assert read(entry("a", Address="10.0.0.5", Port=80, Meta=consul_wire.meta(instance))) == (instance,)
    too_long = {f"label-{number}": "x" * 500 for number in range(64)}
    with pytest.raises(RegistryError):
        consul_wire.meta(Instance.parse({**instance.fields(), "labels": too_long}))


def test_labels_are_plain_where_they_can_be() -> None:
    labels = {"team": "pay", "a.b/c": "odd", "zone": "clash"}
    instance = Instance("orders", "a", "10.0.0.5", 80, labels=labels, zone="eu", weight=3)
    assert consul_wire.meta(instance) == {
        "secure": "false", "weight": "3", "mesh-generation": "", "zone": "eu", "team": "pay",
        "mesh-more-0": '{"a.b/c":"odd","label:zone":"clash"}',
    }  # fmt: skip


@pytest.mark.parametrize("more", ["{", "[]", "[" * 500, '{"a":5}'])
async def test_a_broken_rest_costs_the_rest_only(more: str) -> None:
    (one,) = await fetch(listing(entry(Meta={"team": "pay", "mesh-more-0": more})))
    assert one.labels == {"team": "pay"}


# Staleness


async def test_a_fresh_enough_answer_is_taken() -> None:
    asked = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(dict(request.url.params))
        return answer([entry()], LastContact="10000", KnownLeader="true")

    assert len((await backend(handler, stale_max=10).registry.fetch(ORDERS)).instances) == 1
    assert asked == [{"stale": "1"}]


async def test_a_stale_answer_is_replaced_by_the_leaders() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if "stale" in request.url.params:
            return answer([entry("old")], LastContact="10001", KnownLeader="true")
        return answer([entry("new")], index=9)

    listed = await backend(handler, stale_max=10).registry.fetch(ORDERS)
    assert ([one.id for one in listed.instances], listed.revision) == (["new"], "9")


@pytest.mark.parametrize("headers", [{"LastContact": "60000"}, {"KnownLeader": "false"}])
async def test_with_no_leader_the_old_list_serves_who_has_none(headers: dict[str, str]) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if "stale" in request.url.params:
            return answer([entry()], **headers)
        return httpx2.Response(500, content=b"No cluster leader")

    registry = backend(handler).registry
    assert len((await registry.fetch(ORDERS)).instances) == 1
    with pytest.raises(RegistryUnavailable):  # now the caller has a list, and this one is no proof of it
        await registry.fetch(ORDERS)


async def test_with_no_leader_an_empty_list_is_no_list() -> None:
    with pytest.raises(RegistryUnavailable):
        await backend(lambda _: answer([], KnownLeader="false")).registry.fetch(ORDERS)


async def test_a_server_without_leader_is_left() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        return answer([entry(request.url.host)], KnownLeader="false" if request.url.host == "host0" else "true")

    registry = backend(handler, hosts=2).registry
    assert [[one.id for one in (await registry.fetch(ORDERS)).instances] for _ in range(3)] == [["host0"], ["host1"], ["host1"]]


async def test_a_token_that_sees_nothing_is_no_empty_list() -> None:
    with pytest.raises(RegistryDenied):
        await fetch(lambda _: answer([], **{"Results-Filtered-By-ACLs": "true"}))
    assert len(await fetch(lambda _: answer([entry()], **{"Results-Filtered-By-ACLs": "true"}))) == 1


# Watches


async def asked_indices(answers: list[int]) -> list[int]:
    asked: list[int] = []

    async def ask(index: int) -> tuple[int, object]:
        asked.append(index)
        return answers[len(asked) - 1], object()

    async def no_sleep(_: float) -> None: ...

    watch = follow(ask, sleep=no_sleep)
    for _ in answers:
        await anext(watch)
    await watch.aclose()
    return asked


async def test_an_index_that_goes_back_starts_again() -> None:
    assert await asked_indices([50, 60, 3, 4, 4]) == [0, 50, 60, 0, 4]


async def test_an_index_below_one_does_not_spin() -> None:
    assert await asked_indices([0, 0, 0]) == [0, 1, 0]
    assert next_index(0, 0) == 1


async def test_without_the_rule_it_would_wait_for_an_index_of_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consul_http, "next_index", max)
    assert await asked_indices([50, 60, 3, 4, 4]) == [0, 50, 60, 60, 60]


async def test_unrelated_changes_neither_spin_nor_wake() -> None:
    now, asked = 0.0, 0

    async def ask(_: int) -> tuple[int, tuple[()]]:
        nonlocal asked
        asked += 1
        return asked, ()

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    watch = follow(ask, clock=lambda: now, sleep=sleep)
    for _ in range(6):
        await anext(watch)
    assert 5 <= now <= 5.2  # one a second, each a proof of life
    assert asked <= 5.2 / consul_http.PACE + consul_http.BURST + 1
    await watch.aclose()


@pytest.mark.parametrize("burst", [consul_http.BURST, 0])
async def test_changes_that_follow_each_other_are_seen_at_once(burst: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consul_http, "BURST", burst)
    now, moves = 100.0, iter([10.0, 0.003, 0.003, 10.0])  # how long each question waits for the next change

    async def ask(index: int) -> tuple[int, int]:
        nonlocal now
        now += next(moves)
        return index + 1, index + 1

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    watch = follow(ask, clock=lambda: now, sleep=sleep)
    seen = [(await anext(watch), now)[1] for _ in range(3)]
    await watch.aclose()
    late = seen[2] - seen[1] - 0.003  # of the second of two changes in a row
    assert late == pytest.approx(0.0 if burst else consul_http.PACE, abs=0.004)


async def test_the_questions_of_a_watch() -> None:
    asked = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(dict(request.url.params))
        return answer([entry(Port=len(asked))], index=len(asked) * 10)

    watch = backend(handler).registry.watch(ORDERS)
    assert [(await anext(watch)).revision for _ in range(2)] == ["10", "20"]
    await watch.aclose()
    assert asked == [{"stale": "1"}, {"stale": "1", "index": "10", "wait": "10s"}]


# Errors


HEARTBEAT = Instance("orders", "a", "10.0.0.5", 8080)


def agent(passing: httpx2.Response, **service: Any) -> Handler:
    known = entry(Tags=[], Meta=consul_wire.meta(HEARTBEAT))["Service"]

    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.startswith("/v1/agent/check/pass/"):
            return passing
        return answer({**known, "Weights": {}, "TaggedAddresses": {}, **service})

    return handler


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b"", True),
        (404, b'Unknown check ID "service:a"', False),
        (500, b'CheckID "service:a" does not have associated TTL', False),
        (500, b"Internal error", RegistryUnavailable),
        (429, b"", RegistryUnavailable),
        (403, b"Permission denied", RegistryDenied),
        (401, b"ACL support disabled", RegistryDenied),
        (400, b"?", InvalidAnswer),
        (302, b"", InvalidAnswer),
    ],
)
async def test_what_a_heartbeat_makes_of_an_answer(status: int, body: bytes, outcome: Any) -> None:
    registry = backend(agent(httpx2.Response(status, content=body))).registry
    if isinstance(outcome, bool):
        assert await registry.heartbeat(HEARTBEAT, 15) is outcome
    else:
        with pytest.raises(outcome):
            await registry.heartbeat(HEARTBEAT, 15)


@pytest.mark.parametrize(
    "other", [{"Port": 1}, {"Meta": {}}, {"Meta": None}, {"Service": "x"}, {"Address": ""}, {"Tags": ["x"]}],
)  # fmt: skip
async def test_a_heartbeat_sees_another_registration(other: dict[str, Any]) -> None:
    assert await backend(agent(httpx2.Response(200), **other)).registry.heartbeat(HEARTBEAT, 15) is False


@pytest.mark.parametrize("body", [b"", b"[]", b"nul", b"[" * 100_000, b"\xff"])
async def test_unreadable_answers_everywhere(body: bytes) -> None:
    opened = backend(lambda _: answer(body))
    assert opened.kv is not None
    calls = [
        lambda: opened.kv.get("a"), lambda: opened.kv.list("a"), lambda: opened.kv.put("a", b"", expected=1),
        lambda: opened.kv.lock("a", ttl=10), lambda: opened.registry.services(""),
        lambda: opened.registry.heartbeat(HEARTBEAT, 15),
    ]  # fmt: skip
    for call in calls:
        with contextlib.suppress(RegistryError):
            assert not await call()


@pytest.mark.parametrize("item", [{}, {"Key": 5}, {"Key": "a", "ModifyIndex": "x"}, {"Key": "a", "ModifyIndex": 1, "Value": 5}])
async def test_a_malformed_key(item: dict[str, Any]) -> None:
    kv = backend(lambda _: answer([item])).kv
    assert kv is not None
    with pytest.raises(InvalidAnswer):
        await kv.get("a")


async def test_a_transaction_lost() -> None:
    kv = backend(lambda _: answer({"Errors": []}, status=409)).kv
    assert kv is not None
    with pytest.raises(CasConflict):
        await kv.delete("a", expected=5)


@pytest.mark.parametrize("key", ["/a", "a//b", "a/../b", "..", "./a", "a/."])
async def test_keys_that_a_path_would_change(key: str) -> None:
    kv = backend(lambda _: pytest.fail("sent")).kv
    assert kv is not None
    with pytest.raises(ConfigError):
        await kv.put(key, b"")


async def test_calls_that_fail_together_move_on_by_one_host() -> None:
    together = asyncio.Barrier(4)

    async def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "host1":
            return answer([entry()])
        await together.wait()
        return httpx2.Response(500)

    registry = backend(handler, hosts=2).registry
    outcomes = await asyncio.gather(*(registry.fetch(ORDERS) for _ in range(4)), return_exceptions=True)
    assert all(isinstance(outcome, RegistryUnavailable) for outcome in outcomes)
    assert len((await registry.fetch(ORDERS)).instances) == 1


def test_the_host_of_an_implied_port_is_left_too() -> None:
    client = ControlClient((("one", 80), ("2001:db8::1", 80)), timeout=1)
    for current in (1, 0):
        client.rotate(str(httpx2.URL(f"{client.bases[client.current]}/v1/kv/")))
        assert client.current == current
    client.rotate("http://other:80/")
    assert client.current == 0


async def test_a_trickling_body_has_a_deadline() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"["
        await asyncio.Event().wait()

    class Stream(httpx2.AsyncByteStream):
        def __aiter__(self) -> AsyncIterator[bytes]:
            return trickle()

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, stream=Stream()))
    client = ControlClient((("host", 1),), timeout=0.01, transport=transport)
    with pytest.raises(RegistryUnavailable):
        await client.request("GET", "/")


# Credentials and options


def token_of(seen: list[str | None]) -> Handler:
    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("X-Consul-Token"))
        return answer({} if "agent" in request.url.path else [])

    return handler


async def use(opened: Backend) -> None:
    assert opened.kv is not None
    await opened.registry.fetch(ORDERS)
    await opened.registry.heartbeat(HEARTBEAT, 15)
    await opened.kv.list("")


async def test_the_token_of_the_environment_does_not_override_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "theirs")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "elsewhere:1")
    seen: list[str | None] = []
    await use(backend(token_of(seen), registry_token="ours"))
    assert seen == ["ours"] * 3
    seen.clear()
    await use(backend(token_of(seen)))
    assert seen == ["theirs"] * 3


async def test_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSUL_HTTP_TOKEN", raising=False)
    seen: list[str | None] = []
    await use(backend(token_of(seen)))
    assert seen == [None] * 3


async def test_a_renewed_token_file_is_read_again(tmp_path: Path) -> None:
    file, seen = tmp_path / "token", list[str | None]()
    file.write_text("one\n")
    registry = backend(token_of(seen), registry_token_file=str(file)).registry
    await registry.fetch(ORDERS)
    file.write_text("another\n")
    await registry.fetch(ORDERS)
    assert seen == ["one", "another"]


@pytest.mark.parametrize("token", ["a\r\nX: 1", "tökén"])
async def test_a_token_that_is_no_header(token: str) -> None:
    with pytest.raises(RegistryDenied) as caught:
        await backend(token_of([]), registry_token=token).registry.fetch(ORDERS)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [f"consul://h{rest}" for rest in ("/path", "?nope=1", "?tls=maybe", "?wait=0", "?wait=60", "?wait=x")],
)
def test_bad_options(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_backend(Settings(registry=url))
    assert caught.value.name == "MESH_REGISTRY"
    assert "consul://127.0.0.1:8500" in str(caught.value)


async def test_options() -> None:
    asked = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return answer([])

    client = ControlClient((("h", 8500),), timeout=1, transport=httpx2.MockTransport(handler))
    opened = backend_over(client, Settings(registry="consul://h?dc=east&wait=2.5"))
    assert opened.kv is not None
    await opened.registry.fetch(ORDERS)
    await opened.kv.list("a")
    assert asked == ["http://h:8500/v1/health/service/orders?stale=1&dc=east", "http://h:8500/v1/kv/a?recurse=1&dc=east"]
    assert open_backend(Settings(registry="consul://one,two:1")).registry.routes == (("one", 8500), ("two", 1))


def test_without_py_consul(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "consul" or name.startswith("meshlib.backends.consul_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "consul", None)
    with pytest.raises(MissingExtra, match="py-consul"):
        open_backend(Settings(registry="consul://h"))


@pytest.mark.parametrize(("seconds", "text"), [(15, "15s"), (2.5, "2.5s"), (1e6, "1000000s"), (0.1, "0.1s"), (300.0, "300s")])
def test_durations(seconds: float, text: str) -> None:
    from meshlib.backends.consul_registry import seconds as written

    assert written(seconds) == text
