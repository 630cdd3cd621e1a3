"""A registration belongs to the agent that took it: what becomes of it when another agent takes over."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from meshlib.backends import consul_registry
from meshlib.backends.consul import backend_over
from meshlib.backends.consul_registry import ConsulRegistry
from meshlib.backends.http import ControlClient
from meshlib.errors import RegistryUnavailable
from meshlib.model import Instance
from meshlib.settings import Settings

pytestmark = pytest.mark.anyio

ONE = Instance("orders", "orders-1", "10.0.0.5", 8080)
NAMES = ("one", "two")


class Agents:
    """Agents at the hosts :data:`NAMES`, as far as a registration needs them. ``down`` refuse connections, ``broken`` answer
    with an error, ``silent`` do not answer."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
        self.down, self.broken, self.silent = set[str](), set[str](), set[str]()
        self.asked: Counter[str] = Counter()
        client = ControlClient(tuple((name, 8500) for name in NAMES), timeout=30, transport=httpx2.MockTransport(self.answer))
        self.registry = backend_over(client, Settings(registry="consul://one,two")).registry
        self.client = client

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        name, path = request.url.host, request.url.path
        self.asked[name] += 1
        if name in self.down:
            raise httpx2.ConnectError("refused")
        if name in self.silent:
            await asyncio.Event().wait()
        if name in self.broken:
            return httpx2.Response(500)
        return self.perform(self.services[name], path, request.content)

    def perform(self, known: dict[str, Any], path: str, body: bytes) -> httpx2.Response:
        if path.endswith("/service/register"):
            wanted = json.loads(body)
            known[wanted["id"]] = {"Service": wanted["name"], "Address": wanted["address"], "Port": wanted["port"],
                                   "Meta": wanted["meta"], "Tags": wanted.get("tags")}  # fmt: skip
            return httpx2.Response(200)
        there = known.get(path.rpartition("/")[2].removeprefix("service:"))
        if there is None:
            return httpx2.Response(404, content=b"Unknown check or service")
        if "/deregister/" in path:
            known.clear()
        return httpx2.Response(200, json=there)

    def holding(self) -> list[str]:
        return [name for name in NAMES if self.services[name]]


@pytest.fixture
async def agents() -> Agents:
    """After a failover: registered with "two", and left behind in "one", which is back."""
    made = Agents()
    await made.registry.register(ONE, 15)
    assert made.holding() == ["one"]
    made.down = {"one"}
    assert await made.registry.heartbeat(ONE, 15) is False
    await made.registry.register(ONE, 15)
    made.down = set()
    assert made.holding() == ["one", "two"]
    return made


async def test_a_heartbeat_leaves_the_agent_from_before_a_failover(agents: Agents) -> None:
    assert await agents.registry.heartbeat(ONE, 15) is True
    assert agents.holding() == ["two"]
    asked = agents.asked["one"]
    assert await agents.registry.heartbeat(ONE, 15) is True
    assert agents.asked["one"] == asked  # it has been told


async def test_deregistering_leaves_all(agents: Agents) -> None:
    await agents.registry.deregister(ONE)
    assert agents.holding() == []


async def test_without_it_the_old_entry_stays(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_self: ConsulRegistry, _instance: Instance) -> bool:
        return False

    monkeypatch.setattr(ConsulRegistry, "_leave_others", nobody)
    assert await agents.registry.heartbeat(ONE, 15) is True
    await agents.registry.deregister(ONE)
    assert agents.holding() == ["one"]


def down(agents: Agents) -> None:
    agents.down = {"one"}


def broken(agents: Agents) -> None:
    agents.broken = {"one"}


def silent(agents: Agents) -> None:
    agents.silent = {"one"}


@pytest.mark.parametrize("trouble", [down, broken, silent])
async def test_an_agent_that_cannot_be_told_is_told_later(
    agents: Agents, trouble: Callable[[Agents], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble(agents)
    with monkeypatch.context() as impatient:
        impatient.setattr(consul_registry, "ELSEWHERE", 0.01)
        assert await agents.registry.heartbeat(ONE, 15) is True
    assert agents.holding() == ["one", "two"]
    assert agents.client.base.startswith("http://two")  # nobody changed hosts for that
    agents.down, agents.broken, agents.silent = set(), set(), set()
    assert await agents.registry.heartbeat(ONE, 15) is True
    assert agents.holding() == ["two"]


async def test_what_works_is_not_left_for_what_does_not(agents: Agents) -> None:
    await agents.registry.heartbeat(ONE, 15)
    agents.client.rotate()
    agents.broken = {"one"}
    with pytest.raises(RegistryUnavailable):
        await agents.registry.heartbeat(ONE, 15)
    assert agents.holding() == ["two"]


async def test_two_names_of_one_agent() -> None:
    agents = Agents()
    agents.services["two"] = agents.services["one"]
    await agents.registry.register(ONE, 15)
    agents.client.rotate()
    await agents.registry.register(ONE, 15)
    assert await agents.registry.heartbeat(ONE, 15) is False  # it has just removed itself, and is registered again at once
    await agents.registry.register(ONE, 15)
    for _ in range(3):
        assert await agents.registry.heartbeat(ONE, 15) is True
