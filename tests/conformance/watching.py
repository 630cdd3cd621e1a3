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

    async def until(self, condition: Callable[[Any], bool], within: float = 10.0) -> Any:
        async with asyncio.timeout(within):
            while not (self.seen and condition(self.seen[-1])):
                if self.error:
                    raise self.error
                self.news.clear()
                await self.news.wait()
        return self.seen[-1]


def ids(listing: Any) -> list[str]:
    return [instance.id for instance in listing.instances]


async def held(proxy: Proxy) -> None:
    """Wait until the server holds the question of a watch: one that has just started still answers, and a cut between two
    questions harms nobody."""
    asked = -1
    while asked != proxy.asked:
        asked = proxy.asked
        await asyncio.sleep(0.3)
