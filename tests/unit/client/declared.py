"""Declared clients over a handler, without a mesh."""

from __future__ import annotations

import time
from typing import TypeVar

import httpx2

from meshlib.client.stub import AsyncStub, SyncStub, declaration_of, implement
from meshlib.model import ServiceUrl
from tests.unit.wiring import Handler, World

C = TypeVar("C")


def client(cls: type[C], handler: Handler | World, *, name: str = "", timeout: float = 10.0) -> C:
    world = handler if isinstance(handler, World) else World(handler)
    target = ServiceUrl.parse(name) if name else declaration_of(cls).target
    proceed = world.proceed[target.service]
    clock = time.monotonic
    return implement(  # type: ignore[no-any-return]
        cls, target, SyncStub(proceed, world.engine, clock), AsyncStub(proceed, world.async_engine, clock),
        timeout=timeout, connect=1.0,
    )  # fmt: skip


class Seen:
    """A handler that keeps the requests and gives one answer."""

    def __init__(self, status: int = 200, **answer: object) -> None:
        self.requests: list[httpx2.Request] = []
        self._status, self._answer = status, answer or {"json": None}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return httpx2.Response(self._status, **self._answer)  # type: ignore[arg-type]

    @property
    def request(self) -> httpx2.Request:
        return self.requests[-1]
