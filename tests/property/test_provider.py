"""Places that latency grants, and those of requests, under threads, tasks and cancellations at once: each is given back."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from meshlib import adaptive_concurrency, bulkhead, rate_limit, shed
from meshlib.flow import compose
from meshlib.policies.base import Policy, Site
from meshlib.policies.limiter import Permit
from meshlib.server import governed_asgi
from tests.property.test_bulkhead import Storm, switching
from tests.unit.server.serving import ask, layer_of, scope, stack

__all__ = ["switching"]

LIMIT = adaptive_concurrency(initial=50, least=40, most=60)  # some are refused, not all
POLICIES = [LIMIT, shed(concurrency=LIMIT)]


def blown(policy: Policy, seed: int) -> Storm:
    storm = Storm(seed)
    storm.layer = policy.bind(Site())
    storm.proceed = compose([storm.layer])
    storm.blow()
    assert storm.problems == []
    assert storm.passed > 100
    assert storm.cancelled > 0
    return storm


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("seed", range(2))
def test_every_place_comes_back(policy: Policy, seed: int) -> None:
    assert len(blown(policy, seed).layer.limiter) == 0


def test_the_negative_control_places_that_are_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Permit, "__call__", lambda _: None)
    storm = Storm(1)
    storm.layer = POLICIES[0].bind(Site())
    storm.proceed = compose([storm.layer])
    storm.blow()
    assert len(storm.layer.limiter) > 0


class Crowd:
    """Requests of which some fail, some are cancelled, some are refused, at any time; ``at_once`` is how many were served."""

    def __init__(self, seed: int, *policies: Policy) -> None:
        self.chance = random.Random(seed)
        self.provider = stack(*policies)
        self.at_once = self.most = 0
        self.statuses: list[int] = []

    async def app(self, _scope: Any, _receive: Any, send: Any) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(self.chance.random() / 500)
            await send({"type": "http.response.start", "status": 200})
            for _ in range(self.chance.randrange(4)):
                await asyncio.sleep(self.chance.random() / 2000)
                if self.chance.random() < 0.1:
                    raise ZeroDivisionError
                await send({"type": "http.response.body", "body": b"tea", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.at_once -= 1

    async def come(self) -> None:
        app = governed_asgi(self.app, self.provider)
        tasks = list[asyncio.Task[Any]]()
        for _ in range(300):
            tasks.append(asyncio.create_task(ask(app, scope())))
            if self.chance.random() < 0.3:
                await asyncio.sleep(self.chance.random() / 1000)
                self.chance.choice(tasks).cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(end, (list, ZeroDivisionError, asyncio.CancelledError)), end
            if isinstance(end, list):
                self.statuses.append(end[0]["status"])


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_of_requests_leaves_nothing_behind(seed: int) -> None:
    crowd = Crowd(seed, rate_limit("1000000/s"), bulkhead(8, wait=0.002), shed())
    asyncio.run(crowd.come())
    assert 2 <= crowd.most <= 8
    assert {200, 503} <= {*crowd.statuses}
    permits = layer_of(crowd.provider, "bulkhead").permits
    assert (permits.free, len(permits._waiters)) == (8, 0)
    assert len(layer_of(crowd.provider, "shed").limiter) == 0
