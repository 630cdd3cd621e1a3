"""What the policies say of themselves: for a call that may be made, and in the error of one that failed."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import httpx2
import pytest

from meshlib import (
    BulkheadFull,
    ConnectFailed,
    Match,
    Mesh,
    NotFound,
    RateLimited,
    RetryBudget,
    Settings,
    bulkhead,
    cache,
    fallback,
    get,
    inject_fault,
    keys,
    rate_limit,
    retry,
    service_client,
    timeout,
    until,
)
from meshlib.client.stack import Stack
from meshlib.flow import compose
from meshlib.policies.base import Site
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import call_to


def said(*policies: Any, before: Any = None, call: Any = None, state: Path | None = None) -> list[str]:
    """What ``policies`` say, after the answers ``before``; twice, for saying it changes nothing."""
    clock = FakeClock()
    site = Site(service="orders", method="Orders.fetch", clock=clock, state_dir=lambda: state or Path())
    stack = Stack(site, policies, compose([]))
    for script in before or []:
        play([lambda made, _: stack.proceed(made)], script, clock=clock, call=call_to(**(call or {})))
    found = [[f"{kind}: {each}" for kind, each in stack.explain(call_to(**(call or {})))] for _ in range(2)]
    assert found[0] == found[1]
    return found[0]


HIT = [[httpx2.Response(200, text="x")]]

ROWS: list[tuple[Any, dict[str, Any], str]] = [
    (timeout(2.0), {}, "timeout: 2 s"),
    (timeout(2.0, attempt=0.5), {}, "timeout: 2 s, 0.5 s for each attempt"),
    (retry(attempts=4), {}, "retry: 4 attempts; the budget has 10 left"),
    (retry(attempts=4), {"call": {"method": "POST"}}, "retry: 4 attempts, once it was sent only one; the budget has 10 left"),
    (retry(attempts=4, idempotency_key=True), {"call": {"method": "POST"}}, "retry: 4 attempts; the budget has 10 left"),
    (retry(attempts=2, budget=RetryBudget(per_second=1)), {"before": [[ConnectFailed("x"), Reply()]]},
     "retry: 2 attempts; the budget has 0 left"),
    (retry(stop=lambda _: True, budget=None), {}, "retry: any number of attempts; no budget"),
    (bulkhead(3), {"before": [[Reply()], [Reply()]]}, "bulkhead: 1 of 3 places free, 0 waiting"),
    (rate_limit("3/s"), {}, "rate_limit: 3 of 3/1s left, 0 waiting"),
    (rate_limit("3/s", "9/m"), {"before": [[Reply()]]},
     "rate_limit: 2 of 3/1s left (one more in 1 s), 8 of 9/60s left (one more in 60 s), 0 waiting"),
    (rate_limit("3/s", key=keys.path()), {}, "rate_limit: 3 of 3/1s left, 0 waiting, for this key, not met yet"),
    (rate_limit("3/s", key=keys.path()), {"before": [[Reply()]]},
     "rate_limit: 2 of 3/1s left (one more in 1 s), 0 waiting, for this key"),
    (rate_limit("3/s", key=lambda _: 1 / 0), {}, "rate_limit: cannot say: ZeroDivisionError('division by zero')"),
    (cache(9.0, maxsize=7), {}, "cache: nothing is kept of it; 0 of 7 answers"),
    (cache(9.0, maxsize=7), {"before": HIT}, "cache: fresh, 0 s old; 1 of 7 answers"),
    (fallback(list), {}, "fallback: list()"),
    (fallback(value=0), {}, "fallback: a value"),
    (fallback(last_good=9.0), {}, "fallback: no good answer is at hand"),
    (fallback(list, last_good=9.0), {"before": HIT}, "fallback: the last good answer, 0 s old, else list()"),
    (inject_fault(abort=503, percent=2.5), {}, "inject_fault: 2.5 % are ended by 503"),
    (inject_fault(delay=1.0, when=Match(path="/x")), {},
     "inject_fault: 0 % are late by 1 s; not this call, which does not match"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "given", "text"), ROWS, ids=lambda value: value[:40] if isinstance(value, str) else None)
def test_what_each_says(policy: Any, given: dict[str, Any], text: str) -> None:
    assert said(policy, **given) == [text]


def test_limits_of_a_host(tmp_path: Path) -> None:
    limit = rate_limit("3/s", scope="host")
    assert said(limit, before=[[Reply()]], state=tmp_path) == ["rate_limit: 2 of 3/1s left (one more in 1 s), 0 waiting"]


def test_limits_in_redis_are_not_asked_for() -> None:
    limit = rate_limit("3/s", scope="redis", url="redis://127.0.0.1:1")
    assert said(limit) == ["rate_limit: 3/1s in Redis, which is not asked here"]


def test_a_deadline_of_the_request_that_is_served() -> None:
    site = Site()
    with until(time.monotonic() + 100.0):
        state = timeout(600.0).bind(site).explain(call_to())  # type: ignore[attr-defined]
    assert state.inherited
    assert 0.0 < state.seconds <= 100.0
    assert "what the request being served has left" in str(state)


def test_a_cache_that_fetches() -> None:
    layer: Any = cache(9.0).bind(Site())
    flow = compose([layer])(call_to())
    next(flow)
    assert str(layer.explain(call_to())) == "nothing is kept of it; one call fetches it, 0 wait; 0 of 1024 answers"
    flow.close()


# -- errors


@retry(attempts=2, base=0.0)
@bulkhead(5)
@timeout(30.0)
@service_client("orders")
class Orders(Protocol):
    @get("/refused")
    def fetch(self) -> str: ...
    @get("/refused")
    async def afetch(self) -> str: ...
    @get("/404")
    def missing(self) -> str: ...
    @get("/refused")
    def stream(self) -> Iterator[bytes]: ...
    @get("/refused")
    def astream(self) -> AsyncIterator[bytes]: ...


class Still(Mesh):
    """A mesh for which no time passes: a second of the retry budget is not over when it is asked what is left."""

    _clock = staticmethod(lambda: 1000.0)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/refused":
            raise httpx2.ConnectError("refused")
        return httpx2.Response(int(request.url.path[1:]))

    mock = httpx2.MockTransport(handler)
    with Still(
        Settings(registry="static://orders=127.0.0.1:1"), transport=lambda _: mock, async_transport=lambda _: mock
    ) as made:
        yield made


STATES = """\
policies of orders Orders.{name}, as they are now:
  timeout: 30 s
  retry: 2 attempts; the budget has 9 left
  bulkhead: 5 of 5 places free, 0 waiting"""


def test_an_error_says_how_they_stand(mesh: Mesh) -> None:
    with pytest.raises(ConnectFailed) as caught:
        mesh.client(Orders).fetch()
    text = caught.value.explain()
    assert STATES.format(name="fetch") in text
    assert text.index("instances, ") < text.index("policies of")
    assert caught.value.left == 30.0
    assert "of the deadline, 30" in text


@pytest.mark.parametrize("name", ["afetch", "stream", "astream"])
def test_in_every_kind_of_method(mesh: Mesh, name: str) -> None:
    async def items(stream: Any) -> None:
        async for _ in stream:
            pass

    with pytest.raises(ConnectFailed) as caught:
        made = getattr(mesh.client(Orders), name)()
        if name == "stream":
            list(made)
        else:
            asyncio.run(items(made) if name == "astream" else made)
    assert STATES.format(name=name) in caught.value.explain()
    assert len(caught.value.passed) == 1


def test_an_error_status_too(mesh: Mesh) -> None:
    with pytest.raises(NotFound) as caught:
        mesh.client(Orders).missing()
    assert "policies of orders Orders.missing, as they are now:\n  timeout: 30 s" in caught.value.explain()
    assert caught.value.left is None, "of the deadline, only the policy knows, and for it all was well"


def test_mounted_clients(mesh: Mesh) -> None:
    with mesh.http("orders", policies=[bulkhead(3)]) as http, pytest.raises(httpx2.ConnectError) as caught:
        http.get("/refused")
    assert isinstance(caught.value, ConnectFailed)
    assert "policies of orders, as they are now:\n  bulkhead: 3 of 3 places free" in caught.value.explain()

    async def main() -> None:
        async with mesh.ahttp("orders", policies=[bulkhead(3)]) as http:
            await http.get("/refused")

    with pytest.raises(httpx2.ConnectError) as caught:
        asyncio.run(main())
    assert isinstance(caught.value, ConnectFailed)
    assert "3 of 3 places free" in caught.value.explain()
    old: Any = mesh.transport("orders", policies=[bulkhead(3)])
    with httpx.Client(transport=old) as client, pytest.raises(httpx.ConnectError) as other:
        client.get("http://orders/refused")
    assert "3 of 3 places free" in other.value.explain()  # type: ignore[attr-defined]


def test_functions_say_it_beside_what_they_call(mesh: Mesh) -> None:
    orders = mesh.client(Orders)

    @rate_limit("9/m")
    def outer() -> str:
        return orders.fetch()

    @rate_limit("1/m")
    async def limited() -> str:
        return ""

    with pytest.raises(ConnectFailed) as caught:
        outer()
    inner, own = map(str, caught.value.passed)
    assert inner == STATES.format(name="fetch")
    assert own.startswith("policies of tests.unit.policies.test_passed test_functions")
    assert "8 of 9/60s left" in own

    async def twice() -> None:
        await limited()  # type: ignore[misc]
        await limited()  # type: ignore[misc]

    with pytest.raises(RateLimited) as refused:
        asyncio.run(twice())
    assert "0 of 1/60s left (one more in " in refused.value.explain()


def test_it_is_said_when_somebody_asks(mesh: Mesh) -> None:
    @bulkhead(1)
    def deep(again: bool) -> str:
        return deep(False) if again else ""

    with pytest.raises(BulkheadFull) as caught:
        deep(True)
    assert "1 of 1 places free" in caught.value.explain(), "as they are now, not as they were"


def test_they_go_to_other_processes_as_text(mesh: Mesh) -> None:
    with pytest.raises(ConnectFailed) as caught:
        mesh.client(Orders).fetch()
    (there,) = pickle.loads(pickle.dumps(caught.value.passed))
    assert there == STATES.format(name="fetch")


def test_a_mesh_says_it_too(mesh: Mesh) -> None:
    orders = mesh.client(Orders)
    text = str(mesh.explain("orders", path="/refused"))
    assert "Orders.fetch: timeout, retry, bulkhead\n  timeout: 30 s\n  retry: 2 attempts; the budget has 10 left" in text
    assert orders is not None
