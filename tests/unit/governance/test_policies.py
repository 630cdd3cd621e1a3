"""What operators do with documents, over a store in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from meshlib.backends.memory import MemoryKeyValue, Store
from meshlib.errors import CasConflict, ConfigError, RegistryUnavailable
from meshlib.governance.layout import key_of, past_key, prefix_of, service_at
from meshlib.governance.policies import KEPT, Policies
from meshlib.model import ServiceUrl

ORDERS = ServiceUrl("orders")


def tries(count: int, **fields: Any) -> dict[str, Any]:
    return {"consumer": {"policies": {"retry": {"attempts": count}}}, **fields}


def done(story: Callable[[Policies, Any], Coroutine[Any, Any, None]], **options: Any) -> Store:
    shared = Store()
    kv = MemoryKeyValue(shared)
    asyncio.run(story(Policies(kv, wall=lambda: 5.0, **options), kv))
    return shared


def test_the_layout() -> None:
    spaced = ServiceUrl("orders", "shop.prod")
    assert key_of(ORDERS) == "policies/-/orders/current"
    assert key_of(spaced) == "policies/shop.prod/orders/current"
    assert past_key(spaced, 7) == "policy-history/shop.prod/orders/0000000000000007"
    assert key_of(ServiceUrl("orders-backup")).startswith(prefix_of(ORDERS)) is False
    assert service_at(key_of(spaced)) == spaced
    assert service_at(past_key(ORDERS, 1)) is service_at("policies/-/orders") is None


def test_put_get_and_what_is_stored() -> None:
    async def story(policies: Policies, kv: Any) -> None:
        assert await policies.get("orders") is None
        assert (await policies.put("orders", tries(5))).version == 1
        assert (await policies.put("orders", tries(6), note="sale")).version == 2
        assert (await policies.put("shop.prod.stock", tries(7, version=40))).version == 40
        found = await policies.get("orders")
        assert found is not None
        assert (found.version, found.note) == (2, "sale")
        assert await policies.names() == ["orders", "shop.prod.stock"]
        entry = await kv.get("policies/-/orders/current")
        assert json.loads(entry.value) == {"version": 2, "service": "orders", "note": "sale", **tries(6)}
        assert list(json.loads(entry.value))[:2] == ["version", "service"]

    done(story)


def test_a_name_without_a_namespace_is_in_that_of_the_mesh() -> None:
    async def story(policies: Policies, kv: Any) -> None:
        await policies.put("orders", "version: 3\nmode: shadow")
        assert await policies.names() == ["shop.prod.orders"]
        assert (await kv.get("policies/shop.prod/orders/current")) is not None

    done(story, namespace="shop.prod")


@pytest.mark.parametrize(("content", "problem"), [
    ({"consumer": {"policies": {"retry": {"attempts": 0}}}}, "consumer.policies.retry.attempts"),
    ({"service": "stock"}, "'stock' is not the one"),
    ({"version": 1}, "1 is not higher than 1"),
    ("{", "is no JSON"),
])  # fmt: skip
def test_what_is_wrong_is_not_put(content: Any, problem: str) -> None:
    async def story(policies: Policies, kv: Any) -> None:
        await policies.put("orders", tries(5))
        before = await kv.list("")
        with pytest.raises(ConfigError, match=problem):
            await policies.put("orders", content)
        assert await kv.list("") == before

    done(story)


def test_compare_and_set() -> None:
    async def story(policies: Policies, _: Any) -> None:
        await policies.put("orders", tries(1), expected=0)
        for expected in (0, 2):
            with pytest.raises(CasConflict, match=f"version 1, not {expected}"):
                await policies.put("orders", tries(2), expected=expected)
        assert (await policies.put("orders", tries(2), expected=1)).version == 2

    done(story)


class Racing(MemoryKeyValue):
    """Somebody else puts a document between our look and our put, so often."""

    def __init__(self, shared: Store, times: int) -> None:
        super().__init__(shared)
        self.times = times

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> None:
        if self.times and key.endswith("/current"):
            self.times -= 1
            await Policies(MemoryKeyValue(self.store)).put("orders", tries(9))
        await super().put(key, value, expected=expected)


@pytest.mark.parametrize(("times", "expected", "fails"), [(1, None, False), (4, None, False), (5, None, True), (1, 0, True)])
def test_operators_that_race(times: int, expected: int | None, fails: bool) -> None:
    async def story(_: Policies, kv: Any) -> None:
        ours = Policies(Racing(kv.store, times))
        if fails:
            with pytest.raises(CasConflict):
                await ours.put("orders", tries(5), expected=expected)
        else:
            assert (await ours.put("orders", tries(5), expected=expected)).version == times + 1
        assert [past.version for past in await ours.history("orders")] == list(range(times + (not fails), 0, -1))

    done(story)


def test_the_history_is_bounded_and_brings_versions_back() -> None:
    async def story(policies: Policies, kv: Any) -> None:
        for count in range(1, KEPT + 6):
            await policies.put("orders", tries(count))
        await kv.put("policy-history/-/orders/readme", b"not ours")
        history = await policies.history("orders")
        assert [past.version for past in history] == list(range(KEPT + 5, 5, -1))
        assert history[0].put == 5.0
        back = await policies.rollback("orders", 7)
        assert (back.version, back.note) == (KEPT + 6, "back to version 7")
        assert back.consumer.policies.given == {"retry": {"attempts": 7}}
        with pytest.raises(ConfigError, match="2 of orders is not kept; there are"):
            await policies.rollback("orders", 2)

    done(story)


def test_versions_go_on_after_a_document_that_is_of_no_use_or_gone() -> None:
    async def story(policies: Policies, kv: Any) -> None:
        await policies.put("orders", tries(1, version=5))
        await kv.put("policies/-/orders/current", b"{")
        with pytest.raises(ConfigError, match="is no JSON"):
            await policies.get("orders")
        assert (await policies.put("orders", tries(2))).version == 6
        await kv.delete("policies/-/orders/current")
        assert (await policies.put("orders", tries(2))).version == 7

    done(story)


def test_differences() -> None:
    async def story(policies: Policies, _: Any) -> None:
        await policies.put("orders", tries(1))
        await policies.put("orders", tries(2))
        await policies.delete("orders", note="no longer needed")
        first = await policies.diff("orders", 1, 2)
        assert {'-        "attempts": 1', '+        "attempts": 2'} <= set(first.splitlines())
        assert first == (await policies.diff("orders", 1, 2))
        assert '-        "attempts": 2' in await policies.diff("orders", 2)
        assert await policies.diff("orders", 2, 2) == ""

    done(story)


def test_a_history_that_cannot_be_written_does_not_fail_what_is_in_force(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(MemoryKeyValue):
        async def put(self, key: str, value: bytes, *, expected: int | None = None) -> None:
            if key.startswith("policy-history/"):
                raise RegistryUnavailable("gone")
            await super().put(key, value, expected=expected)

    async def story(_: Policies, kv: Any) -> None:
        policies = Policies(Forgetful(kv.store))
        assert (await policies.put("orders", tries(1))).version == 1
        assert "not in the history" in caplog.text

    done(story)


def test_validating_needs_no_version() -> None:
    async def story(policies: Policies, kv: Any) -> None:
        assert policies.validate("orders", tries(3)).consumer.policies.given == {"retry": {"attempts": 3}}
        with pytest.raises(ConfigError, match="the document"):
            policies.validate("orders", tries(0))
        assert await kv.list("") == ()

    done(story)
