"""The etcd backend against scripted answers of a gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.backends import etcd, etcd_gateway, etcd_watch, open_backend
from meshlib.backends.base import Listing
from meshlib.backends.codec import decode, encode
from meshlib.backends.etcd import EtcdRegistry
from meshlib.backends.etcd_gateway import Gateway
from meshlib.backends.etcd_kv import EtcdKeyValue
from meshlib.backends.etcd_watch import Change
from meshlib.backends.etcd_wire import Pair, range_end
from meshlib.backends.http import ControlClient
from meshlib.errors import (
    CasConflict,
    ConfigError,
    InvalidAnswer,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
)
from meshlib.model import Instance, ServiceUrl
from meshlib.security.secret import Secret
from meshlib.settings import RegistryUrl, Settings

pytestmark = pytest.mark.anyio

ORDERS = ServiceUrl("orders")
PREFIX = "/meshlib/default/services/orders/"
HOSTS = (("10.0.0.1", 2379), ("10.0.0.2", 2379))
SILENCE = object()
"""Nothing (more) comes, and the connection stays open."""


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def instance(name: str = "a", **fields: Any) -> Instance:
    return Instance.parse({"service": "orders", "id": name, "host": "10.0.0.5", "port": 8080, **fields})


def pair(name: str = "a", document: bytes | None = None, *, revision: int = 5, **more: Any) -> dict[str, Any]:
    value = encode(instance(name)) if document is None else document
    return {"key": b64(PREFIX + name), "value": b64(value), "mod_revision": str(revision), **more}


def ranged(*pairs: dict[str, Any], revision: int = 10, count: int | None = None) -> dict[str, Any]:
    return {"header": {"revision": str(revision)}, "kvs": list(pairs), "count": str(len(pairs) if count is None else count)}


def created(revision: int = 10) -> dict[str, Any]:
    return {"result": {"header": {"revision": str(revision)}, "created": True}}


def events(*changes: dict[str, Any], revision: int = 11) -> dict[str, Any]:
    return {"result": {"header": {"revision": str(revision)}, "events": list(changes)}}


def put(name: str, revision: int, **fields: Any) -> dict[str, Any]:
    return {"kv": pair(name, encode(instance(name, **fields)), revision=revision)}


def gone(name: str, revision: int) -> dict[str, Any]:
    return {"type": "DELETE", "kv": {"key": b64(PREFIX + name), "mod_revision": str(revision)}}


def canceled(**more: Any) -> dict[str, Any]:
    return {"result": {"header": {}, "canceled": True, **more}}


def failed(code: int, message: str, status: int = 400) -> httpx2.Response:
    return httpx2.Response(status, json={"error": message, "message": message, "code": code})


NO_LEADER = failed(14, "etcdserver: no leader", 503)
STALE = failed(16, "etcdserver: invalid auth token", 401)


class Script(httpx2.AsyncByteStream):
    """The body of a watch, line by line."""

    def __init__(self, lines: list[Any]) -> None:
        self.lines, self.closed = lines, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for line in self.lines:
            if line is SILENCE:
                await asyncio.Event().wait()
            yield line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n\n"

    async def aclose(self) -> None:
        self.closed = True


class FakeEtcd:
    """Answers each path with the next of its script; the last one repeats. A script is a list of JSON values, responses or
    functions of the token that was sent; a watch's answers are lists of lines. The leader's first confirmation of what any
    member has listed is no part of the script, unless ``confirming`` is off."""

    def __init__(self, *, confirming: bool = True, **scripts: list[Any]) -> None:
        self.confirming, self.listed = confirming, dict[str, Any]()
        self.scripts: dict[str, list[Any]] = {
            "grant": [{"ID": "7", "TTL": "15"}], "revoke": [{"header": {}}], "put": [{"header": {}}],
            "deleterange": [{"header": {}}], "keepalive": [{"result": {"ID": "7", "TTL": "15"}}], **scripts,
        }  # fmt: skip
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.tokens: list[str] = []
        self.streams: list[Script] = []
        self.client = ControlClient(HOSTS, timeout=30, transport=httpx2.MockTransport(self.answer))

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        name = request.url.path.rpartition("/")[2]
        body = json.loads(request.content)
        self.seen.append((name, body))
        token = request.headers.get("authorization", "")
        self.tokens.append(token)
        await asyncio.sleep(0)  # as a network would, it lets others in between question and answer
        if name == "range" and self.listed and "sort_target" in body:
            newest = sorted(self.listed["kvs"], key=lambda kv: int(kv["mod_revision"]))[-1:]
            step, self.listed = {**self.listed, "kvs": newest}, {}
            return httpx2.Response(200, json=step)
        script = self.scripts[name]
        step = script.pop(0) if len(script) > 1 else script[0]
        step = step(token) if callable(step) else step
        if isinstance(step, Exception):
            raise step
        if step is SILENCE:
            await asyncio.Event().wait()
        if isinstance(step, httpx2.Response):
            return step
        if name == "range" and body.get("serializable") and self.confirming:
            self.listed = step
        if name == "watch":
            self.streams.append(Script(step))
            return httpx2.Response(200, stream=self.streams[-1])
        return httpx2.Response(200, content=step if isinstance(step, bytes) else json.dumps(step).encode())

    def bodies(self, name: str) -> list[dict[str, Any]]:
        return [body for seen, body in self.seen if seen == name]

    def gateway(self, **login: Any) -> Gateway:
        return Gateway(self.client, **login)

    def registry(self, **login: Any) -> EtcdRegistry:
        return EtcdRegistry(self.gateway(**login), idle=0)

    def kv(self) -> EtcdKeyValue:
        return EtcdKeyValue(self.gateway(), idle=0)


LOGIN: dict[str, Any] = {"user": "meshlib", "password": Secret("open sesame")}


async def listings(registry: EtcdRegistry, count: int) -> list[list[str]]:
    """The ids in the first ``count`` listings of a watch."""
    seen: list[list[str]] = []
    async with aclosing(registry.watch(ORDERS)) as watch:  # type: ignore[type-var]
        async for listing in watch:
            seen.append([one.id for one in listing.instances])
            if len(seen) == count:
                break
    return seen


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert range_end(prefix) == end


class TestOpening:
    def test_defaults(self) -> None:
        backend = open_backend(Settings(registry=RegistryUrl.parse("etcd://10.0.0.1,[::1]:2399/shops/?wait=2")))
        assert backend.registry.routes == (("10.0.0.1", 2379), ("::1", 2399))
        assert isinstance(backend.registry, EtcdRegistry)
        assert backend.registry.idle == 2
        assert backend.registry._prefix(ORDERS) == b"/shops/default/services/orders/"

    @pytest.mark.parametrize("wait", ["0", "x", "-1", "nan", "15", ""])
    def test_unusable_wait(self, wait: str) -> None:
        with pytest.raises(ConfigError, match=r"MESH_REGISTRY .*wait="):
            open_backend(Settings(registry=RegistryUrl.parse(f"etcd://10.0.0.1?wait={wait}")))

    def test_a_user_needs_a_password(self) -> None:
        with pytest.raises(ConfigError, match="MESH_REGISTRY_PASSWORD"):
            open_backend(Settings(registry=RegistryUrl.parse("etcd://10.0.0.1"), registry_user="shop"))


class TestRegistration:
    async def test_hangs_on_a_lease(self) -> None:
        server = FakeEtcd()
        await server.registry().register(instance(namespace="shop.prod"), 2.5)
        (grant,), (put,) = server.bodies("grant"), server.bodies("put")
        assert grant == {"TTL": "3"}
        assert base64.b64decode(put["key"]) == b"/meshlib/shop.prod/services/orders/a"
        assert base64.b64decode(put["value"]) == encode(instance(namespace="shop.prod"))
        assert put["lease"] == "7"

    async def test_again_ends_the_former_lease_after_the_write(self) -> None:
        server = FakeEtcd(grant=[{"ID": "7", "TTL": "9"}, {"ID": "8", "TTL": "9"}])
        registry = server.registry()
        await registry.register(instance(), 9)
        await registry.register(instance(version="2"), 9)
        assert [name for name, _ in server.seen] == ["grant", "put", "grant", "put", "revoke"]
        assert server.bodies("revoke") == [{"ID": "7"}]

    async def test_a_lost_answer_is_cleared_up_by_the_next_heartbeat(self) -> None:
        there = ranged(pair("a", lease="7"))
        server = FakeEtcd(put=[httpx2.ReadError("cut")], range=[there, ranged()])
        registry = server.registry()
        with pytest.raises(RegistryUnavailable):
            await registry.register(instance(), 9)
        assert await registry.heartbeat(instance(), 9) is True
        assert await registry.heartbeat(instance(), 9) is False

    async def test_without_a_registration_nothing_is_asked(self) -> None:
        server = FakeEtcd()
        assert await server.registry().heartbeat(instance(), 9) is False
        assert server.seen == []

    @pytest.mark.parametrize(
        ("keepalive", "found", "alive"),
        [
            ({"result": {"ID": "7", "TTL": "9"}}, ranged(pair(lease="7")), True),
            ({"result": {"ID": "7"}}, ranged(pair(lease="7")), False),
            ({"result": {"ID": "7", "TTL": "9"}}, ranged(), False),
            ({"result": {"ID": "7", "TTL": "9"}}, ranged(pair(lease="6")), False),
            ({"result": {"ID": "7", "TTL": "9"}}, ranged(pair(document=b"{}", lease="7")), False),
        ],
        ids=["well", "lease gone", "key gone", "of another lease", "another document"],
    )
    async def test_heartbeat(self, keepalive: Any, found: Any, alive: bool) -> None:
        server = FakeEtcd(keepalive=[keepalive], range=[found])
        registry = server.registry()
        await registry.register(instance(), 9)
        assert await registry.heartbeat(instance(), 9) is alive
        assert len(server.bodies("keepalive")) == 1

    async def test_deregister_without_a_lease(self) -> None:
        server = FakeEtcd()
        await server.registry().deregister(instance())
        assert server.seen == [("deleterange", {"key": b64(PREFIX + "a")})]

    async def test_deregister_ends_the_lease_and_an_ended_one_is_fine(self) -> None:
        server = FakeEtcd(revoke=[failed(5, "etcdserver: requested lease not found", 404)])
        registry = server.registry()
        await registry.register(instance(), 9)
        await registry.deregister(instance())
        assert server.bodies("revoke") == [{"ID": "7"}]


BAD_DOCUMENTS = {
    "empty": b"", "no json": b"}{", "no object": b"[]", "bad utf-8": b'{"host":"\xff"}', "nested": b'{"x":' + b"[" * 30_000,
    "number": b'{"id":"bad","host":"2130706433","port":1}', "userinfo": b'{"id":"bad","host":"x@evil","port":1}',
    "crlf": b'{"id":"bad","host":"10.0.0.5\\r\\nX: 1","port":1}', "port": b'{"id":"bad","host":"10.0.0.5","port":[]}',
    "no port": b'{"id":"bad","host":"10.0.0.5"}', "other id": encode(instance("a")), "huge": b" " * 70_000 + b"{}",
}  # fmt: skip


class TestHostileContent:
    @pytest.mark.parametrize("document", BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
    async def test_one_bad_instance_is_left_out_and_told_once(self, document: bytes, caplog: pytest.LogCaptureFixture) -> None:
        server = FakeEtcd(range=[ranged(pair("a"), pair("bad", document), pair("c"))])
        registry = server.registry()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert [one.id for one in (await registry.fetch(ORDERS)).instances] == ["a", "c"]
        assert len(caplog.records) == 1
        assert "\n" not in caplog.records[0].getMessage()
        assert "\r" not in caplog.records[0].getMessage()

    async def test_an_instance_that_turns_bad_is_no_longer_listed(self) -> None:
        bad = {"kv": pair("a", b"junk", revision=11)}
        server = FakeEtcd(range=[ranged(pair("a"), pair("b"))], watch=[[created(), events(bad), SILENCE]])
        assert await listings(server.registry(), 2) == [["a", "b"], ["b"]]

    @pytest.mark.parametrize(
        "content",
        [
            b"", b"no json", b"[]", b"null", b"{}", b"\xff\xfe", b'{"header":' + b"[" * 100_000, b'{"header":{"revision":"x"}}',
            b'{"header":{"revision":[]}}', b'{"header":{},"kvs":{}}', b'{"header":{},"kvs":[{"key":5}]}',
            b'{"header":{},"kvs":[{"key":"%%%"}]}', b'{"header":{},"kvs":[{"key":"YQ"}]}', b'{"header":{},"kvs":[{}]}',
            b'{"header":{"revision":"' + b"9" * 5000 + b'"}}',
        ],
    )  # fmt: skip
    async def test_an_answer_that_is_none(self, content: bytes) -> None:
        with pytest.raises(InvalidAnswer):
            await FakeEtcd(range=[content]).registry().fetch(ORDERS)

    async def test_keys_outside_the_prefix_are_not_taken_in(self) -> None:
        foreign = {**pair("a"), "key": b64("/elsewhere/a")}
        event = {"kv": {**foreign, "mod_revision": "11"}}
        server = FakeEtcd(range=[ranged(foreign, count=0)], watch=[[created(), events(event), SILENCE]])
        assert (await server.registry().fetch(ORDERS)).instances == ()
        assert await listings(server.registry(), 2) == [[], []]

    async def test_names_of_services(self) -> None:
        names = [b"orders/a", b"orders/b", b"cart/a/b", b"A\r\nX/1", b"x.y.z/1", b"/1", b"\xff/1"]
        keys = [{"key": b64(b"/meshlib/default/services/" + name)} for name in names]
        server = FakeEtcd(range=[ranged(*keys)])
        assert await server.registry().services("") == ["cart", "orders"]
        assert server.bodies("range")[0]["keys_only"] is True


class TestErrors:
    @pytest.mark.parametrize(
        ("answer", "error", "rotates"),
        [
            (failed(14, "etcdserver: no leader", 503), RegistryUnavailable, True),
            (failed(14, "etcdserver: request timed out", 503), RegistryUnavailable, True),
            (failed(4, "context deadline exceeded", 504), RegistryUnavailable, True),
            (failed(8, "etcdserver: mvcc: database space exceeded", 429), RegistryUnavailable, False),
            (failed(99, "who knows"), RegistryUnavailable, False),
            (failed(7, "etcdserver: permission denied", 403), RegistryDenied, False),
            (failed(3, "etcdserver: user name is empty"), RegistryDenied, False),
            (STALE, RegistryDenied, False),
            (httpx2.Response(403, text="go away"), RegistryDenied, False),
            (httpx2.Response(502, text="<html>"), RegistryUnavailable, True),
            (httpx2.Response(404, text="Not Found"), RegistryUnavailable, False),
            (httpx2.Response(302, headers={"location": "http://evil/"}), RegistryUnavailable, False),
            (httpx2.ReadTimeout(""), RegistryUnavailable, True),
            (httpx2.ReadError("cut"), RegistryUnavailable, True),
        ],
    )
    async def test_table(self, answer: Any, error: type[RegistryError], rotates: bool) -> None:
        server = FakeEtcd(range=[answer])
        with pytest.raises(error):
            await server.registry().fetch(ORDERS)
        assert server.client.current == int(rotates)

    async def test_a_text_of_the_server_breaks_no_log(self) -> None:
        server = FakeEtcd(range=[failed(13, "a\r\nb\u2028" + "x" * 5000)])
        with pytest.raises(RegistryUnavailable) as caught:
            await server.registry().fetch(ORDERS)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400

    async def test_an_answer_that_trickles_has_a_deadline(self) -> None:
        server = FakeEtcd(range=[httpx2.Response(200, stream=Script([b"{", SILENCE]))])
        server.client.timeout = 0.01
        with pytest.raises(RegistryUnavailable):
            await server.registry().fetch(ORDERS)


class TestLogin:
    async def test_before_the_first_request_and_only_then(self) -> None:
        server = FakeEtcd(authenticate=[{"token": "t1"}], range=[ranged()])
        registry = server.registry(**LOGIN)
        await asyncio.gather(*(registry.fetch(ORDERS) for _ in range(5)))
        assert server.bodies("authenticate") == [{"name": "meshlib", "password": "open sesame"}]
        assert server.tokens == ["", *["t1"] * 5]

    @pytest.mark.parametrize(
        "refusal",
        [
            STALE, failed(3, "etcdserver: revision of auth store is old"), failed(2, "auth: revision in header is old", 500),
            failed(3, "etcdserver: user name is empty"), failed(16, "whatever", 500),
        ],
    )  # fmt: skip
    async def test_again_when_the_token_is_refused(self, refusal: httpx2.Response) -> None:
        server = FakeEtcd(authenticate=[{"token": "t1"}, {"token": "t2"}], range=[refusal, ranged(pair())])
        assert len((await server.registry(**LOGIN).fetch(ORDERS)).instances) == 1
        assert server.tokens == ["", "t1", "", "t2"]

    async def test_once_for_all_whose_token_is_refused(self) -> None:
        server = FakeEtcd(authenticate=[{"token": "t1"}, {"token": "t2"}])
        server.scripts["range"] = [lambda sent: STALE if sent == "t1" else ranged()]
        registry = server.registry(**LOGIN)
        await asyncio.gather(*(registry.fetch(ORDERS) for _ in range(5)))
        assert len(server.bodies("authenticate")) == 2

    async def test_not_for_ever(self) -> None:
        server = FakeEtcd(authenticate=[{"token": "t1"}], range=[STALE])
        with pytest.raises(RegistryDenied):
            await server.registry(**LOGIN).fetch(ORDERS)
        assert len(server.bodies("authenticate")) == 2

    async def test_wrong_password(self) -> None:
        refusal = failed(3, "etcdserver: authentication failed, invalid user ID or password")
        server = FakeEtcd(authenticate=[refusal])
        with pytest.raises(RegistryDenied) as caught:
            await server.registry(**LOGIN).fetch(ORDERS)
        assert "open sesame" not in f"{caught.value!r}"

    async def test_a_server_without_users(self) -> None:
        server = FakeEtcd(authenticate=[failed(9, "etcdserver: authentication is not enabled", 412)], range=[ranged()])
        registry = server.registry(**LOGIN)
        await registry.fetch(ORDERS)
        await registry.fetch(ORDERS)
        assert server.tokens == ["", "", ""]

    @pytest.mark.parametrize("token", ["", "a\r\nb", "ü", "x" * 5000])
    async def test_an_unusable_token(self, token: str) -> None:
        with pytest.raises(InvalidAnswer):
            await FakeEtcd(authenticate=[{"token": token}]).registry(**LOGIN).fetch(ORDERS)

    async def test_a_watch_whose_token_has_expired(self) -> None:
        reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
        server = FakeEtcd(
            authenticate=[{"token": "t1"}, {"token": "t2"}],
            range=[ranged()],
            watch=[[canceled(created=True, cancel_reason=reason)], [created(), events(put("a", 11)), SILENCE]],
        )
        assert await listings(server.registry(**LOGIN), 2) == [[], ["a"]]
        assert server.streams[0].closed

    async def test_a_watch_that_is_not_allowed(self) -> None:
        reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        server = FakeEtcd(range=[ranged()], watch=[[canceled(created=True, cancel_reason=reason)]])
        with pytest.raises(RegistryDenied):
            await listings(server.registry(), 2)


class TestWatch:
    async def test_applies_events_in_order(self) -> None:
        lines = [created(), events(put("b", 11), put("c", 12), gone("b", 13)), events(gone("a", 14)), SILENCE]
        server = FakeEtcd(range=[ranged(pair("a"))], watch=[lines])
        assert await listings(server.registry(), 3) == [["a"], ["a", "c"], ["c"]]
        (watch,) = server.bodies("watch")
        assert watch["create_request"]["start_revision"] == "11"
        assert watch["create_request"]["range_end"] == b64(PREFIX[:-1] + "0")
        assert server.bodies("range")[0]["serializable"] is True

    async def test_lines_may_come_in_any_pieces(self) -> None:
        text = b"".join(json.dumps(line).encode() + b"\n\n" for line in (created(), events(put("b", 11))))
        pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
        server = FakeEtcd(range=[ranged(pair("a"))], watch=[[*pieces, SILENCE]])
        assert await listings(server.registry(), 2) == [["a"], ["a", "b"]]

    async def test_silence_is_confirmed_by_the_leader_without_documents(self) -> None:
        server = FakeEtcd(
            range=[ranged(pair("a")), ranged(pair("a", b""), revision=40)],
            watch=[[created(), SILENCE], [created(40), events(put("b", 41)), SILENCE]],
        )
        assert await listings(server.registry(), 3) == [["a"], ["a"], ["a", "b"]]
        confirmed = server.bodies("range")[2]
        assert confirmed["keys_only"] is True
        assert (confirmed["limit"], confirmed["sort_target"], confirmed["sort_order"]) == ("1", "MOD", "DESCEND")
        assert not confirmed.get("serializable")
        assert server.bodies("watch")[1]["create_request"]["start_revision"] == "41"
        assert server.streams[0].closed

    async def test_what_any_member_lists_is_confirmed_by_the_leader_at_once(self) -> None:
        server = FakeEtcd(confirming=False, range=[ranged(pair("a")), NO_LEADER])
        registry = server.registry()
        watch = aiter(registry.watch(ORDERS))
        assert [one.id for one in (await anext(watch)).instances] == ["a"]
        with pytest.raises(RegistryUnavailable, match="no leader"):
            await anext(watch)
        assert not server.bodies("watch")

    async def test_who_knows_the_service_already_asks_the_leader_first(self) -> None:
        server = FakeEtcd(range=[ranged(pair("a")), NO_LEADER], watch=[[created()]])
        registry = server.registry()
        with pytest.raises(RegistryUnavailable, match="ended the watch"):
            await listings(registry, 2)
        with pytest.raises(RegistryUnavailable, match="no leader"):  # and not what some member still lists
            await listings(registry, 1)
        server.scripts["range"] = [ranged(pair("a"), pair("b")), ranged(pair("a"), pair("b"))]
        assert await listings(registry, 1) == [["a", "b"]]
        assert [body.get("serializable", False) for body in server.bodies("range")] == [True, False, False, False, False]

    async def test_a_leader_that_does_not_answer_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etcd_watch, "LEADER", 0.01)
        server = FakeEtcd(confirming=False, range=[ranged(pair("a")), SILENCE])
        with pytest.raises(RegistryUnavailable, match="no leader"):
            await listings(server.registry(), 2)
        assert server.client.current == 1  # another member may do better

    async def test_the_revision_is_that_of_the_events_not_of_the_store(self) -> None:
        lines = [created(), events(put("b", 11), revision=5000), SILENCE]
        newest = ranged(pair("b", b"", revision=12), revision=5000, count=2)  # it came while the watch was being reopened
        server = FakeEtcd(range=[ranged(pair("a")), newest, ranged(pair("a"), pair("b"), revision=5000)],
                          watch=[lines, [created(5000), SILENCE]])  # fmt: skip
        assert len(await listings(server.registry(), 3)) == 3
        assert len(server.bodies("range")) == 4

    @pytest.mark.parametrize(
        "doubt",
        [ranged(pair("a", b"", revision=12), revision=12), ranged(revision=12, count=0), ranged(pair("a", b""), revision=3),
         ranged(pair("c", b""), revision=12), ranged(pair("a", b"", lease="9"), revision=12)],
        ids=["newer key", "fewer keys", "state lost", "state lost, as far again", "and as many writes"],
    )  # fmt: skip
    async def test_whatever_does_not_fit_is_listed_again(self, doubt: dict[str, Any]) -> None:
        after = int(doubt["header"]["revision"])
        server = FakeEtcd(
            range=[ranged(pair("a")), doubt, ranged(pair("b"), revision=after)],
            watch=[[created(), SILENCE], [created(after), SILENCE]],
        )
        assert await listings(server.registry(), 2) == [["a"], ["b"]]
        assert server.bodies("range")[3]["serializable"] is False

    async def test_compacted(self) -> None:
        server = FakeEtcd(
            range=[ranged(pair("a")), ranged(revision=90, count=2), ranged(pair("a"), pair("b"), revision=91)],
            watch=[[created(90), canceled(compact_revision="80")], [created(91), SILENCE]],
        )
        assert await listings(server.registry(), 2) == [["a"], ["a", "b"]]
        assert [name for name, _ in server.seen] == ["range", "range", "watch", "range", "range"]

    async def test_a_member_that_lags_is_left(self) -> None:
        server = FakeEtcd(range=[ranged(revision=10)], watch=[[created(9), SILENCE]])
        with pytest.raises(RegistryUnavailable, match="not reached"):
            await listings(server.registry(), 2)
        assert server.client.current == 1

    @pytest.mark.parametrize(
        ("lines", "error"),
        [
            ([created()], RegistryUnavailable),
            ([], RegistryUnavailable),
            ([created(), b'{"result":{"he'], RegistryUnavailable),
            ([created(), {"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}], RegistryUnavailable),
            ([created(), {}], RegistryUnavailable),
            ([created(), canceled()], RegistryUnavailable),
            ([created(), b"junk\n"], InvalidAnswer),
            ([created(), {"result": {"header": {}, "events": [{"kv": {"key": "%"}}]}}], InvalidAnswer),
            ([created(), {"result": {"header": {}, "events": [{"type": "PUT"}]}}], InvalidAnswer),
            ([created(), b'{"result":' + b"[" * 100_000 + b"\n"], InvalidAnswer),
            ([httpx2.ReadError("cut")], RegistryUnavailable),
        ],
    )
    async def test_ends_with_an_error(self, lines: list[Any], error: type[RegistryError]) -> None:
        def open_or_fail(_: Any) -> Any:
            return lines[0] if lines and isinstance(lines[0], Exception) else lines

        server = FakeEtcd(range=[ranged(pair("a"))], watch=[open_or_fail])
        with pytest.raises(error):
            await listings(server.registry(), 2)

    async def test_a_line_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etcd_gateway, "MAX_LINE", 1000)
        server = FakeEtcd(range=[ranged()], watch=[[created(), *[b"x" * 100] * 20, SILENCE]])
        with pytest.raises(RegistryUnavailable, match="line of more than 1000"):
            await listings(server.registry(), 2)

    async def test_that_does_not_open_has_a_deadline(self) -> None:
        def impatient(_: str) -> Any:
            server.client.timeout = 0.01  # from now on: what is listed before has all its time
            return ranged()

        server = FakeEtcd(confirming=False, range=[ranged(), impatient], watch=[[SILENCE]])
        with pytest.raises(RegistryUnavailable, match="opened no watch"):
            await listings(server.registry(), 2)

    async def test_cancelling_closes_the_stream(self) -> None:
        server = FakeEtcd(range=[ranged()])
        registry = EtcdRegistry(server.gateway(), idle=10)
        opened = asyncio.Event()

        async def follow() -> None:
            async for _ in registry.watch(ORDERS):
                pass

        def open_it(_: Any) -> list[Any]:
            asyncio.get_running_loop().call_soon(opened.set)
            return [created(), SILENCE]

        server.scripts["watch"] = [open_it]
        task = asyncio.create_task(follow())
        await opened.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert server.streams[0].closed

    async def test_a_change_among_a_thousand_decodes_one_document(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded = counting(monkeypatch)
        many = [pair(f"i{n}") for n in range(1000)]
        lines = [created(), *(events(put("i7", 11 + n, version=str(n))) for n in range(5)), events(gone("i8", 16)), SILENCE]
        server = FakeEtcd(
            range=[ranged(*many), ranged(pair("i7", b"", revision=15), revision=16, count=999)],
            watch=[lines, [created(16), SILENCE]],
        )
        counts = []
        async with aclosing(server.registry().watch(ORDERS)) as watch:  # type: ignore[type-var]
            async for _ in watch:
                counts.append(len(decoded))
                if len(counts) == 8:
                    break
        assert counts == [1000, 1001, 1002, 1003, 1004, 1005, 1005, 1005]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Count the documents that are decoded."""
    decoded: list[bytes] = []

    def count(document: bytes, service: ServiceUrl) -> Instance:
        decoded.append(document)
        return decode(document, service)

    monkeypatch.setattr(etcd, "decode", count)
    return decoded


class TestKeyValue:
    async def test_reads_ask_the_leader(self) -> None:
        server = FakeEtcd(range=[ranged()])
        await server.kv().get("a")
        await server.kv().list("a")
        assert not any(body.get("serializable") for body in server.bodies("range"))

    async def test_keys_that_are_no_text_come_back(self) -> None:
        raw = b"/meshlib/kv/\xffa"
        server = FakeEtcd(range=[ranged({"key": b64(raw), "mod_revision": "3"})])
        (entry,) = await server.kv().list("")
        await server.kv().delete(entry.key)
        assert server.bodies("deleterange") == [{"key": b64(raw)}]

    async def test_compare_and_set(self) -> None:
        server = FakeEtcd(txn=[{"header": {}, "succeeded": True}, {"header": {}}])
        await server.kv().put("a", b"1", expected=4)
        (txn,) = server.bodies("txn")
        assert txn["compare"] == [
            {"key": b64("/meshlib/kv/a"), "target": "MOD", "result": "EQUAL", "mod_revision": "4"},
        ]
        with pytest.raises(CasConflict):
            await server.kv().delete("a", expected=4)

    async def test_a_held_lock_costs_one_request(self) -> None:
        server = FakeEtcd(range=[ranged({"key": b64("/meshlib/locks/a")})])
        assert await server.kv().lock("a", ttl=5) is None
        assert [name for name, _ in server.seen] == ["range"]

    async def test_a_lock_lost_to_a_faster_one_gives_its_lease_back(self) -> None:
        server = FakeEtcd(range=[ranged()], txn=[{"header": {"revision": "9"}}])
        assert await server.kv().lock("a", ttl=5) is None
        assert server.bodies("revoke") == [{"ID": "7"}]

    async def test_a_lock_whose_answer_is_lost_gives_its_lease_back(self) -> None:
        server = FakeEtcd(range=[ranged()], txn=[httpx2.ReadError("cut")])
        with pytest.raises(RegistryUnavailable):
            await server.kv().lock("a", ttl=5)
        assert server.bodies("revoke") == [{"ID": "7"}]

    async def test_a_lock_whose_taker_is_cancelled_gives_its_lease_back(self) -> None:
        server = FakeEtcd(range=[ranged()], txn=[SILENCE])
        taking = asyncio.create_task(server.kv().lock("a", ttl=5))
        while not server.bodies("txn"):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait({taking})
        assert taking.cancelled()
        assert server.bodies("revoke") == [{"ID": "7"}]

    async def test_releasing_a_lock_that_is_lost(self) -> None:
        server = FakeEtcd(
            range=[ranged()],
            txn=[{"header": {"revision": "9"}, "succeeded": True}],
            revoke=[failed(5, "etcdserver: requested lease not found", 404)],
        )
        lock = await server.kv().lock("a", ttl=5)
        assert lock is not None
        await lock.release()

    async def test_fence_and_renewal(self) -> None:
        held = {"key": b64("/meshlib/locks/a"), "lease": "7", "create_revision": "9"}
        taken = {"header": {"revision": "9"}, "succeeded": True}
        found = [ranged(), ranged(held), ranged({**held, "create_revision": "12"}), ranged()]
        server = FakeEtcd(range=found, txn=[taken])
        lock = await server.kv().lock("a", ttl=5)
        assert lock is not None
        assert lock.fence == 9
        assert [await lock.renew() for _ in range(3)] == [True, False, False]


@given(st.lists(st.tuples(st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from(["1", "2", "gone", "unusable"]), max_size=3),
                          st.booleans()), max_size=12))  # fmt: skip
def test_a_listing_kept_up_is_the_one_made_anew(changes: list[tuple[dict[str, str], bool]]) -> None:
    view, model = etcd.View(ORDERS, PREFIX.encode(), set()), dict[str, str]()
    for revision, (said, whole) in enumerate(changes):
        keys = {
            PREFIX.encode() + name.encode(): kept(name, what) for name, what in said.items() if not (whole and what == "gone")
        }
        listing = view.apply(Change(revision, keys, whole))
        model = {**({} if whole else model), **said}
        listed = [instance(name, version=what) for name, what in sorted(model.items()) if what in ("1", "2")]
        assert listing == Listing(tuple(listed), str(revision))


def kept(name: str, what: str) -> Pair | None:
    document = b"{" if what == "unusable" else encode(instance(name, version=what))
    return None if what == "gone" else Pair(PREFIX.encode() + name.encode(), document)
