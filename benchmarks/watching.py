"""Those who watch in ``benchmarks propagation``, a process each: ``python -m benchmarks.watching WHO URL SERVICE``.

They print a line for each change they have got: its generation, the monotonic time (which is the whole machine's), and the
CPU seconds that the process has used so far.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import threading
import time
from collections.abc import AsyncIterator

import httpx2
import msgspec

from meshlib import Mesh, Settings
from meshlib.balance.layer import Balance

CHANGING = "orders-changing"
"""The instance that every change replaces: another generation is another endpoint."""


def tell(generation: str, seen: float) -> None:
    """One line for the parent."""
    os.write(1, f"{generation} {seen!r} {time.process_time()!r}\n".encode())


async def raw(url: str, service: str) -> None:
    """A watch as one writes it by hand: no time-outs, no failover, nothing checked, nothing kept."""
    kind, _, address = url.partition("://")
    watch = {"consul": blocking_queries, "etcd": watch_stream}[kind]
    async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=None, trust_env=False) as client:
        async for generation, seen in watch(client, service):
            tell(generation, seen)


async def blocking_queries(client: httpx2.AsyncClient, service: str) -> AsyncIterator[tuple[str, float]]:
    """Consul's: the answer decoded, then the next question."""
    index = "0"
    while True:
        answer = await client.get(f"/v1/health/service/{service}", params={"stale": "1", "index": index, "wait": "10s"})
        entries, index = msgspec.json.decode(answer.content), answer.headers["X-Consul-Index"]
        seen = time.monotonic()
        for entry in entries:
            if entry["Service"]["ID"] == CHANGING:
                yield entry["Service"]["Meta"]["mesh-generation"], seen


async def watch_stream(client: httpx2.AsyncClient, service: str) -> AsyncIterator[tuple[str, float]]:
    """etcd's: each event, and the document in it, decoded."""
    prefix = f"/meshlib/default/services/{service}/"
    watch = {"key": b64(prefix), "range_end": b64(prefix[:-1] + "0"), "start_revision": "1"}
    async with client.stream("POST", "/v3/watch", json={"create_request": watch}) as answer:
        async for line in answer.aiter_lines():
            for event in msgspec.json.decode(line)["result"].get("events", ()):
                instance = msgspec.json.decode(base64.b64decode(event["kv"]["value"]))
                seen = time.monotonic()
                if instance["id"] == CHANGING:
                    yield instance["generation"], seen


def b64(text: str) -> str:
    """As the gateway wants its bytes."""
    return base64.b64encode(text.encode()).decode()


def mesh(url: str, service: str) -> None:
    """A mesh with one client: when its balance is prepared, the next call is given the new instance."""
    prepare = Balance.prepare

    def timed(balance: Balance) -> None:
        prepare(balance)
        seen = time.monotonic()
        fleet = balance.source.fleet
        changing = fleet.find(CHANGING)
        if changing is not None and changing in fleet.tiers.prime:
            tell(changing.instance.generation, seen)

    Balance.prepare = timed  # type: ignore[method-assign, assignment]
    with Mesh(Settings(registry=url, watch_idle=3600.0)) as running, running.http(service):
        running.prefetch(service)
        threading.Event().wait()


if __name__ == "__main__":
    who, *where = sys.argv[1:]
    if who == "raw":
        asyncio.run(raw(*where))
    else:
        mesh(*where)
