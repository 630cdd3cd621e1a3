"""A backend that fails every call is called by four processes, at a thousand calls a second where the machine can. Their
retries do not finish it off: it gets a fifth more than it is called, and ten a second. Without the budget (the control), three
times as much. (That it is so at exactly a thousand a second, in virtual time: tests/unit/policies/test_retry.py.)"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.faults.stage import TOP

PROCESSES = 4
SECONDS = 5.0


class Failing(asyncio.Protocol):
    """Answers 503 to every request head it gets; ``requests`` counts them."""

    requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        Failing.requests += len(heads)
        answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        self._transport.write(answer * len(heads))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Storm:
    calls: int
    requests: int


async def storm(rate: int, seconds: float, budget: str) -> Storm:
    """What becomes of ``rate`` calls a second of all processes together."""
    Failing.requests = 0
    server = await asyncio.get_running_loop().create_server(Failing, "127.0.0.1", 0, backlog=1000)
    port = str(server.sockets[0].getsockname()[1])
    command = [sys.executable, "-m", "tests.faults.stormer", port, str(rate // PROCESSES), str(seconds), budget]
    consumers = [
        await asyncio.create_subprocess_exec(*command, cwd=TOP, stdout=subprocess.PIPE) for _ in range(PROCESSES)
    ]  # fmt: skip
    try:
        async with asyncio.timeout(60):
            said = [await consumer.communicate() for consumer in consumers]
    finally:
        for consumer in consumers:
            if consumer.returncode is None:
                consumer.kill()
                await consumer.wait()
        server.close()
    assert [consumer.returncode for consumer in consumers] == [0] * PROCESSES
    return Storm(sum(int(out) for out, _ in said), Failing.requests)


@pytest.mark.alone
def test_retries_are_a_fifth_of_the_calls() -> None:
    """As long as each process calls so fast that a fifth is more than ten a second: where it was held up, another try."""
    assert any(a_fifth(asyncio.run(storm(1000, SECONDS, "default"))) for _ in range(4))


def a_fifth(seen: Storm) -> bool:
    """And what the budget has is used."""
    print(seen)
    fast = seen.calls >= 60 * PROCESSES * SECONDS
    return fast and 1.15 * seen.calls <= seen.requests <= 1.2 * seen.calls + 10 * SECONDS


def test_the_control_without_a_budget() -> None:
    seen = asyncio.run(storm(100, 1.0, "none"))
    assert seen.requests == 3 * seen.calls
