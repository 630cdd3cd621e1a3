"""100 000 generated payloads: no error but the documented ones, no wrong route, the good ones survive, memory is bounded."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from meshlib import model
from meshlib.backends import codec, consul_wire
from meshlib.errors import InvalidAnswer
from tests.model import oracle
from tests.model.ways import ORDERS, PLAYS, WrongRoute

SHARES = {"consul": 30_000, "etcd": 25_000, "etcd_watch": 15_000, "local": 15_000, "snapshot": 10_000, "static": 5_000}
MEMORY = 96 * 1024 * 1024
"""Bytes that a run may need at its peak, what it is played with included. The largest payload has 1 MB."""
TENTH = 10


class Lines(logging.Handler):
    """What is logged must be lines, and not long ones."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not oracle.printable(text) or len(text) > 2000:
            raise WrongRoute(f"logged: {text[:300]!r}")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    log, handler = logging.getLogger("meshlib"), Lines()
    monkeypatch.setattr(log, "propagate", False)
    consul_wire._warn.cache_clear()
    log.addHandler(handler)
    yield
    log.removeHandler(handler)


def high_water(*, reset: bool = False) -> int:
    """Bytes that this process had in memory at most, since the last ``reset``; 0 where the system does not tell."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return 0


def peak(work: Callable[[], Any]) -> int:
    """Bytes that ``work`` needed at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("way", PLAYS)
def test_without_the_check_of_hosts_routes_are_wrong(way: str, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "parse_host", lambda host: host)
    with pytest.raises(WrongRoute):
        asyncio.run(PLAYS[way](1, 4000, room))


def test_without_the_bound_of_a_document_memory_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    document = b'{"id":"a","host":"a","port":1,"extra":[' + b"[],".join([b""] * 1_000_000) + b"0]}"

    def decoded() -> None:
        with suppress(InvalidAnswer):
            codec.decode(document, ORDERS)

    assert peak(decoded) < MEMORY / 3
    monkeypatch.setattr(codec, "MAX_DOCUMENT", 1 << 40)
    assert peak(decoded) > MEMORY / 3


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize("way", PLAYS)
def test_payloads(way: str, room: Path) -> None:
    before = high_water(reset=True)
    asyncio.run(PLAYS[way](1, SHARES[way], room))
    grown = high_water() - before
    print(f"{way}: {SHARES[way]} payloads, {grown / 1e6:.1f} MB more than before at the peak")
    assert grown < MEMORY


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize("way", PLAYS)
def test_memory(way: str, room: Path) -> None:
    """Allocation by allocation, for a tenth of the payloads: tracing them is slow."""
    needed = peak(lambda: asyncio.run(PLAYS[way](2, SHARES[way] // TENTH, room)))
    print(f"{way}: {needed / 1e6:.1f} MB at the peak")
    assert needed < MEMORY


def test_as_many_as_promised() -> None:
    assert sum(SHARES.values()) == 100_000
