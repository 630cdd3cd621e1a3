"""Callers who wait for so long and then hang up, at any rate: what they offer does not depend on what is served."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

REQUEST = b"GET / HTTP/1.1\r\nHost: orders\r\nX-Mesh-Deadline: %d\r\n%s\r\n"


class Callers:
    """Of the provider at ``port``, each of whom waits for ``patience`` milliseconds. ``counts`` are the answers by status,
    ``late`` those that nobody waited for."""

    def __init__(self, port: int, patience: int) -> None:
        self._port, self._patience = port, patience
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.counts: Counter[str] = Counter()

    async def call(self, priority: str = "") -> None:
        """One request."""
        header = f"X-Mesh-Priority: {priority}\r\n".encode() if priority else b""
        self.counts[f"{priority or 'any'} {await self._ask(REQUEST % (self._patience, header))}"] += 1

    async def _ask(self, request: bytes) -> str:
        connection = self._idle.pop() if self._idle else None
        try:
            async with asyncio.timeout(self._patience / 1000):
                reader, writer = connection = connection or await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as problem:
            if connection is not None:
                connection[1].close()
            return "late" if isinstance(problem, TimeoutError) else "broken"
        self._idle.append(connection)
        return head[9:12].decode()

    async def offer(
        self, rate: float, seconds: float, priorities: tuple[str, ...] = ("",), *, settle: float = 0.0
    ) -> Counter[str]:
        """``rate`` requests a second; what became of them, by priority, in ``seconds`` that begin after ``settle``: whatever
        came to an end in them."""
        start, made, calls = time.monotonic(), 0, set[asyncio.Task[None]]()
        self.counts, settled = Counter(), False
        while (passed := time.monotonic() - start) < settle + seconds:
            if not settled and passed >= settle:
                self.counts, settled = Counter(), True
            while made < passed * rate:
                task = asyncio.create_task(self.call(priorities[made % len(priorities)]))
                calls.add(task)
                task.add_done_callback(calls.discard)
                made += 1
            await asyncio.sleep(0.002)
        counts, self.counts = self.counts, Counter()
        await asyncio.gather(*calls)
        return counts

    async def saturate(self, callers: int, seconds: float) -> Counter[str]:
        """``callers``, each of which calls again as soon as it has its answer: what the provider can do."""
        self.counts = Counter()
        until = time.monotonic() + seconds

        async def again() -> None:
            while time.monotonic() < until:
                await self.call()

        await asyncio.gather(*(again() for _ in range(callers)))
        return self.counts

    def close(self) -> None:
        """Hang up."""
        for _, writer in self._idle:
            writer.close()
