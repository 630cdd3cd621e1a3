"""Declared clients over a handler, without a mesh."""

from __future__ import annotations

import time
from typing import TypeVar

import httpx2

from meshlib.client.declare import Method
from meshlib.client.stack import Stack
from meshlib.client.stub import AsyncStub, SyncStub, declaration_of, implement
from meshlib.model import ServiceUrl
from meshlib.policies.base import Site
from tests.unit.wiring import Handler, World

C = TypeVar("C")


def client(cls: type[C], handler: Handler | World, *, name: str = "", timeout: float = 10.0, connect: float = 1.0) -> C:
    world = handler if isinstance(handler, World) else World(handler)
    target = ServiceUrl.parse(name) if name else declaration_of(cls).target
    clock = time.monotonic

    def stack(method: Method) -> Stack:
        return Stack(Site(method=f"{cls.__qualname__}.{method.name}"), (), world.proceed[target.service])

    return implement(  # type: ignore[no-any-return]
        cls, target, stack, SyncStub(world.engine, clock), AsyncStub(world.async_engine, clock),
        timeout=timeout, connect=connect,
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
