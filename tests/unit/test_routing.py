"""Routing through a mesh: rules on clients, other services, copies, and what is told of a call."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest

from meshlib import ConnectFailed, Match, Mesh, Mirror, NoInstances, Rule, Settings, Subset, get, route, service_client
from meshlib.backends.memory import store
from meshlib.model import Instance

SUBSETS = {"v1": Subset(version="^1"), "v2": Subset(version="^2")}
PATIENCE = 30.0


@route(Rule(when=Match(arguments={"id": "7"}), to="v2"), Rule(to="v1"), subsets=SUBSETS)
@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> str: ...

    @route(Rule(to="v2"), subsets=SUBSETS)
    @get("/orders")
    async def new(self) -> str: ...


class Provider:
    """Says who answers; ``seen`` are the requests, ``dead`` the hosts that refuse."""

    def __init__(self) -> None:
        self.seen: list[httpx2.Request] = []
        self.dead: set[str] = set()
        self.copied = threading.Event()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        if "x-mesh-shadow" in request.headers:
            self.copied.set()
        if request.url.host in self.dead:
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, json=request.url.host)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def mesh(tmp_path: Path, provider: Provider) -> Iterator[Mesh]:
    listed = [
        Instance("orders", "o-1", "10.0.0.1", 80, version="1.0"), Instance("orders", "o-2", "10.0.0.2", 80, version="2.0"),
        Instance("backup", "b-1", "10.0.9.1", 80),
    ]  # fmt: skip
    for one in listed:
        store(str(tmp_path)).instances["", one.service, one.id] = (one, float("inf"))
    settings = Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="shop", port=1)
    mock = httpx2.MockTransport(provider)
    with Mesh(settings, transport=lambda _: mock, async_transport=lambda _: mock) as mesh:
        mesh.snapshot("orders")
        mesh.snapshot("backup")
        yield mesh


def test_rules_of_a_client_and_of_its_methods(mesh: Mesh) -> None:
    orders = mesh.client(Orders)
    assert {orders.fetch(7) for _ in range(10)} == {"10.0.0.2"}
    assert {orders.fetch(8) for _ in range(10)} == {"10.0.0.1"}

    async def many() -> set[str]:
        return {await orders.new() for _ in range(10)}

    assert asyncio.run(many()) == {"10.0.0.2"}


def test_without_rules_calls_go_to_all(mesh: Mesh) -> None:
    assert len({mesh.http("orders").get("/").json() for _ in range(40)}) == 2


def test_by_caller(mesh: Mesh) -> None:
    http = mesh.http("orders", policies=[route(Rule(when=Match(caller="shop"), to="v2"), subsets=SUBSETS)])
    assert {http.get("/").json() for _ in range(10)} == {"10.0.0.2"}


def test_another_service(mesh: Mesh, provider: Provider) -> None:
    http = mesh.http("orders", policies=[route(Rule(failover="backup"))])
    provider.dead |= {"10.0.0.1", "10.0.0.2"}
    assert http.post("/", content=b"x").json() == "10.0.9.1"
    assert provider.seen[-1].read() == b"x"
    provider.seen.clear()
    assert http.get("/").json() == "10.0.9.1"
    assert len(provider.seen) == 1, "the ejected are not tried before"
    assert mesh.events.counts()["route.failover", "orders", ""] == 2
    provider.dead.add("10.0.9.1")
    with pytest.raises(ConnectFailed):
        http.get("/")


def test_copies_to_another_service(mesh: Mesh, provider: Provider) -> None:
    provider.dead.add("10.0.9.1")  # whatever becomes of them
    http = mesh.http("orders", policies=[route(Rule(mirror=Mirror(service="backup")))])
    assert http.post("/x", content=b"body").status_code == 200
    assert provider.copied.wait(PATIENCE)
    seen = {request.url.host: request for request in provider.seen}
    assert seen.pop("10.0.9.1").headers["x-mesh-shadow"] == "1"
    assert all("x-mesh-shadow" not in request.headers for request in seen.values())


def test_copies_with_asyncio(mesh: Mesh, provider: Provider) -> None:
    async def main() -> None:
        async with mesh.ahttp("orders", policies=[route(Rule(to="v1", mirror=Mirror(to="v2")), subsets=SUBSETS)]) as http:
            for _ in range(5):
                assert (await http.post("/x", content=b"body")).json() == "10.0.0.1"
            async with asyncio.timeout(PATIENCE):
                while len(provider.seen) < 10:
                    await asyncio.sleep(0)

    asyncio.run(main())
    assert Counter((one.url.host, "x-mesh-shadow" in one.headers) for one in provider.seen) == {
        ("10.0.0.1", False): 5, ("10.0.0.2", True): 5,
    }  # fmt: skip
    assert all(request.read() == b"body" for request in provider.seen)


def test_documents_replace_rules(mesh: Mesh, provider: Provider) -> None:
    """What overlaying does, on a stack of a mesh: the next call goes elsewhere."""
    http = mesh.http("orders", policies=[route(Rule(to="v1"), subsets=SUBSETS)])
    assert http.get("/").json() == "10.0.0.1"
    (stack,) = mesh._stacks_known
    stack.overlay([route({"to": {"version": "^2"}})])
    assert http.get("/").json() == "10.0.0.2"


# -- explain


def test_what_is_told_of_a_call(mesh: Mesh) -> None:
    orders: Any = mesh.client(Orders)
    told = mesh.explain("orders", path="/orders/7", arguments={"id": 7})
    assert [way.method for way in told.ways] == ["Orders.fetch", "Orders.new"]
    fetch = told.ways[0]
    assert fetch.policies == (fetch.policies[0],)
    assert fetch.said == ("route: rule 0 (arguments={'id': '7'}) → Subset(version='^2')",)
    (destination,) = fetch.destinations
    assert [(one.instance.id, one.dropped) for one in destination.candidates] == [
        ("o-1", ("version '1.0' is not in ^2",)), ("o-2", ()),
    ]  # fmt: skip
    assert told.live
    assert told.age is not None
    assert told.age < 600
    text = str(told).split("\n")
    assert text[0].startswith("GET /orders/7 at orders: instances as of ")
    assert text[1] == "Orders.fetch: route"
    assert "  to the same instances" in text, "both go to v2"
    assert orders.fetch(7) == "10.0.0.2", "as it was told"


def test_chances_are_told(mesh: Mesh) -> None:
    http = mesh.http("orders", policies=[route(Rule(split={"v2": 5, "v1": 95}, key="header:x-user-id"), subsets=SUBSETS)])
    text = str(mesh.explain("orders"))
    assert "to Subset(version='^1') (chance 95.000%):" in text
    assert "to Subset(version='^2') (chance 5.000%):" in text
    (way,) = mesh.explain("orders", headers={"X-User-Id": "7"}).ways
    assert len(way.destinations) == 1
    http.close()


def test_without_a_client_and_without_instances(mesh: Mesh) -> None:
    (way,) = mesh.explain("backup").ways
    assert [one.eligible for one in way.destinations[0].candidates] == [True]
    assert "a client: no policies" in str(mesh.explain("backup"))
    assert "  none" in str(mesh.explain("nobody"))


def test_the_error_of_a_call_tells_the_same(mesh: Mesh) -> None:
    http = mesh.http("orders", policies=[route({"to": {"version": "^9", "strict": True}})])
    with pytest.raises(NoInstances) as caught:
        http.get("/")
    text = caught.value.explain()
    assert "wanted: Subset(version='^9', strict=True)" in text
    assert "o-1 at 10.0.0.1:80" in text
    assert "version '1.0' is not in ^9" in text


def test_clients_that_are_gone_are_not_told_of(mesh: Mesh) -> None:
    import gc

    mesh.http("orders", policies=[route()]).close()
    gc.collect()
    assert str(mesh.explain("orders").ways[0]).startswith("a client: no policies")
