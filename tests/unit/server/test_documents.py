"""A provider under its own policy documents: for all of its requests and by route, over what the code says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from meshlib import Match, Mesh, Settings, bulkhead, on, rate_limit, shed, timeout
from meshlib.events import Events
from meshlib.governance.book import KV, Book, as_provider
from meshlib.governance.document import read
from meshlib.policies.base import Policy
from meshlib.policies.shadow import Shadowed
from meshlib.server import ProviderStack
from tests.servers.base import eventually
from tests.unit.server.serving import ORDERS, asked, scope, stack
from tests.unit.server.test_asgi import tea

POSTS = Match(method="POST", path="/orders/*")
WHEN = {"method": "POST", "path": "/orders/*"}
CODE = (bulkhead(9), timeout(2.0), on(POSTS, rate_limit("5/s", wait=1.0)), on(Match(path="/x"), bulkhead(1)))


def governed(stood: ProviderStack, **fields: Any) -> tuple[Book, Events]:
    events = Events()
    book = Book(ORDERS, events=events, max_age=100.0)
    book.govern(stood, as_provider)
    book.offer(read({"version": 1, **fields}, ORDERS, "x"), KV)
    return book, events


def route(policies: Any, when: Any = WHEN) -> dict[str, Any]:
    return {"routes": [{"when": when, "policies": policies}]}


@pytest.mark.parametrize(("provider", "policies", "said"), [
    ({}, CODE, "nothing here"),
    ({"policies": {"bulkhead": {"limit": 3}, "timeout": None}}, (bulkhead(3), *CODE[2:]), "bulkhead(limit), timeout is off"),
    ({"policies": {"shed": {}}}, (*CODE, shed()), "shed()"),
    (route({"rate_limit": {"limits": "2/s"}}), (*CODE[:2], on(POSTS, rate_limit("2/s", wait=1.0)), CODE[3]),
     "rate_limit on method='POST', path='/orders/*'(limits)"),
    (route({"rate_limit": None}), (*CODE[:2], CODE[3]), "rate_limit on method='POST', path='/orders/*' is off"),
    (route({"bulkhead": {"limit": 4}}, {"path": "/y"}), (*CODE, on(Match(path="/y"), bulkhead(4))), "bulkhead on path='/y'(limit)"),
    (route({"bulkhead": {"wait": 4}}, {"path": "/y"}), CODE, "bulkhead on path='/y' has nothing to set here"),
])  # fmt: skip
def test_over_the_code(provider: Any, policies: Sequence[Policy], said: str) -> None:
    stood = stack(*CODE)
    governed(stood, provider=provider)
    assert set(stood.effective) == set(policies)
    assert str(stood.origin) == f"policy document, version 1 (kv, enforce): {said}"


def test_in_shadow_nothing_is_refused() -> None:
    stood = stack(bulkhead(9))
    governed(
        stood, mode="shadow", provider={"policies": {"bulkhead": {"limit": 1}}, **route({"rate_limit": {"limits": "1/h"}})}
    )
    assert set(stood.effective) == {
        Shadowed(bulkhead(1, wait=0.0)), bulkhead(9), on(POSTS, Shadowed(rate_limit("1/h", wait=0.0))),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["retry", "hedge"])
def test_what_cannot_stand_on_a_provider_is_refused_whole(kind: str) -> None:
    stood = stack(bulkhead(9))
    book, events = governed(stood, provider={"policies": {kind: {}, "bulkhead": {"limit": 1}}})
    assert (stood.effective, book.document) == ((bulkhead(9),), None)
    assert f"{kind} cannot stand on a provider" in book.problem
    assert events.counts() == {("governance.rejected", "orders", ""): 1}


def test_served_under_documents(tmp_path: Path) -> None:
    """It is followed from the first request on, not before: an app is made before its server forks."""
    with Mesh(Settings(service="orders", registry=f"memory://{tmp_path}", state_dir=str(tmp_path))) as mesh:
        app = mesh.asgi(tea)
        (provider,) = mesh._provider_stacks
        assert not mesh._worker.running
        post, other = scope("/orders/7", "POST"), scope("/orders/7")
        assert [asked(app, each)[0] for each in (post, post)] == [200, 200]
        for _ in range(2):  # also after it was closed
            last = mesh.policies.put("orders", {"provider": route({"rate_limit": {"limits": "1/h"}})}).version
            eventually(lambda: provider.origin and provider.origin.version == last, within=60)  # noqa: B023
            asked(app, post)
            status, headers, _ = asked(app, post)
            assert (status, headers["content-type"]) == (429, "application/problem+json")
            assert asked(app, other)[0] == 200
            eventually(lambda: any(path.stat().st_size for path in tmp_path.glob("policies/**/orders.json")), within=60)
            mesh.close()
            asked(app, other)
    with Mesh(Settings(service="orders", registry=f"memory://{tmp_path}", state_dir=str(tmp_path))) as mesh:
        app = mesh.asgi(tea)
        assert [asked(app, post)[0] for _ in range(2)] == [200, 429]  # at once, from the disk
