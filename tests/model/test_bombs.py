"""Answers that are small on the wire and large in memory, or never end."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterable

import httpx2
import pytest

from meshlib.backends import http
from meshlib.backends.http import ControlClient
from meshlib.errors import RegistryUnavailable
from tests.model.test_payloads import peak

BOUND = 4 * 1024 * 1024
MEMORY = 3 * BOUND
"""Bytes needed for an answer of BOUND bytes: its parts, the whole, and room for the rest of us."""
CHUNK = 64 * 1024


class Body(httpx2.AsyncByteStream):
    """Chunks, as a network brings them."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def packed(size: int, encoding: str = "gzip") -> Callable[[], httpx2.Response]:
    """An answer of ``size`` bytes when unpacked, in one chunk."""
    packer = zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
    body = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(size // 1024 // 1024)) + packer.flush()
    return lambda: httpx2.Response(200, headers={"Content-Encoding": encoding}, stream=Body([body]))


def endless() -> httpx2.Response:
    return httpx2.Response(200, stream=Body(bytes(CHUNK) for _ in range(32 * BOUND // CHUNK)))


async def ask(answer: Callable[[], httpx2.Response]) -> int:
    asked: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers["accept-encoding"])
        return answer()

    client = ControlClient((("host0", 1),), timeout=60, transport=httpx2.MockTransport(handler))
    try:
        return len((await client.request("GET", "/")).content)
    finally:
        assert asked == ["gzip"]
        await client.aclose()


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", BOUND)


def refused(answer: Callable[[], httpx2.Response]) -> None:
    with pytest.raises(RegistryUnavailable, match="sent more than"):
        asyncio.run(ask(answer))


@pytest.mark.parametrize("answer", [packed(32 * BOUND), endless], ids=["gzip", "endless"])
def test_what_is_too_large_is_refused_within_bounds(answer: Callable[[], httpx2.Response]) -> None:
    assert peak(lambda: refused(answer)) < MEMORY


@pytest.mark.parametrize("answer", [packed(32 * BOUND), endless], ids=["gzip", "endless"])
def test_without_the_bound_it_is_not(answer: Callable[[], httpx2.Response], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 1 << 40)
    assert peak(lambda: asyncio.run(ask(answer))) > MEMORY


def test_unpacking_a_chunk_whole_would_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(_: object) -> Callable[[bytes, int], bytes]:
        return lambda chunk, _: zlib.decompress(chunk, wbits=16 + zlib.MAX_WBITS)

    monkeypatch.setattr(http, "_unpacker", whole)
    assert peak(lambda: refused(packed(32 * BOUND))) > MEMORY


def test_an_answer_in_gzip() -> None:
    assert asyncio.run(ask(packed(BOUND))) == BOUND


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "x"])
def test_an_encoding_that_nobody_asked_for_is_refused(encoding: str) -> None:
    with pytest.raises(RegistryUnavailable, match="not asked for"):
        asyncio.run(ask(packed(BOUND, encoding)))


def test_damaged_gzip() -> None:
    with pytest.raises(RegistryUnavailable, match="damaged gzip"):
        asyncio.run(ask(lambda: httpx2.Response(200, headers={"Content-Encoding": "gzip"}, stream=Body([b"no gzip at all"]))))


def test_a_watch_is_never_compressed() -> None:
    async def main() -> None:
        client = ControlClient((("host0", 1),), timeout=60, transport=httpx2.MockTransport(lambda _: packed(BOUND)()))
        async with client.stream("POST", "/v3/watch", deadline=60):
            pytest.fail("it was taken")

    with pytest.raises(RegistryUnavailable, match="not asked for"):
        asyncio.run(main())
