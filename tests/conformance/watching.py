"""Follow a watch in the background of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from tests.servers.proxy import Proxy


class Watching:
    """Collects what a watch yields; ``until`` waits for a state that satisfies a condition."""

    def __init__(self, watch: AsyncIterator[Any]) -> None:
        self.watch, self.seen, self.error = watch, [], None
        self.news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            async for state in self.watch:
                self.seen.append(state)
                self.news.set()
        except Exception as error:
            self.error = error
            self.news.set()

    async def until(self, condition: Callable[[Any], bool], within: float = 30.0) -> Any:
        async with asyncio.timeout(within):
            while not (self.seen and condition(self.seen[-1])):
                if self.error:
                    raise self.error
                self.news.clear()
                await self.news.wait()
        return self.seen[-1]


def ids(listing: Any) -> list[str]:
    return [instance.id for instance in listing.instances]


PROMPT = 5.0
"""Seconds in which what happens at once has happened, on a slow machine, too. What has to be waited for takes twice as long."""


async def held(proxy: Proxy) -> None:
    """Wait until the server holds the question of a watch (Consul), or has it open (etcd): a cut between two questions harms
    nobody."""
    async with asyncio.timeout(30):  # what is looked for is in the last part of a request: it may come in two
        while not (proxy.holds(b"&index=", answered=False) or proxy.holds(b"create_request", answered=True)):
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)  # etcd's answer has more than one part
