"""The ways into meshlib that a payload can take: each plays payloads through a backend, and judges what comes out.

A payload is what one writer can put into a registry: an instance's document, a line of a listing, a snapshot, a file.
"""

from __future__ import annotations

import ipaddress
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from meshlib.backends import open_backend
from meshlib.backends.base import Backend
from meshlib.backends.consul import backend_over
from meshlib.backends.etcd import EtcdRegistry
from meshlib.backends.etcd_gateway import Gateway
from meshlib.backends.http import ControlClient
from meshlib.backends.local import LocalRegistry
from meshlib.backends.local_db import Database
from meshlib.discovery.document import Document
from meshlib.discovery.store import SnapshotStore
from meshlib.errors import MeshError, RegistryError, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.settings import Settings
from tests.model import oracle
from tests.model.payloads import DEEP, Generator, b64

ORDERS = ServiceUrl("orders")
PREFIX = b"/meshlib/default/services/orders/"
BATCH = 40
Known = dict[str, set[oracle.Route]]


class WrongRoute(AssertionError):
    """An instance was accepted that a strict reader would not dial, or not there."""


def judge(accepted: tuple[Instance, ...], known: Known) -> None:
    """``accepted`` are all from ``known``, ids and where they may go; and none that is good is missing."""
    ids = [one.id for one in accepted]
    if ids != sorted(set(ids)):
        raise WrongRoute(f"not ordered and unique: {ids}")
    for one in accepted:
        routes = known.get(one.id) or known.get(one.id.rpartition("@")[0]) or set()
        try:
            to = oracle.dialled(one)
        except (AssertionError, httpx2.InvalidURL) as problem:
            raise WrongRoute(f"{one.netloc!r}: {problem}") from problem
        if to not in routes or one.url.name != ORDERS or not oracle.clean(one):
            raise WrongRoute(f"{one} would be dialled at {to}, known is {routes or known}")
    missing = {name for name in known if name.startswith("good-")} - {one.id for one in accepted}
    if missing:
        raise WrongRoute(f"good ones are missing: {missing}")


def add(known: Known, found: tuple[str, oracle.Route] | None) -> None:
    if found:
        known.setdefault(found[0], set()).add(found[1])


# -- the ways in


def answering(handler: Callable[[httpx2.Request], httpx2.Response]) -> ControlClient:
    return ControlClient((("host0", 1),), timeout=60, transport=httpx2.MockTransport(handler))


def consul(handler: Callable[[httpx2.Request], httpx2.Response]) -> Backend:
    return backend_over(answering(handler), Settings(registry="consul://host0"))


async def play_consul(seed: int, count: int, room: Path) -> int:
    make, said = Generator(seed), [b""]
    registry = consul(lambda _: httpx2.Response(200, headers={"X-Consul-Index": "7"}, content=said[0])).registry
    for _ in range(count // BATCH):
        entries = [make.entry() for _ in range(BATCH)]
        known: Known = {}
        for entry in entries:
            add(known, oracle.of_entry(entry))
        said[0] = b"[" + b",".join(entries) + b"]"
        judge((await registry.fetch(ORDERS)).instances, known)
        await broken(registry.fetch, said, make)
    return count


async def broken(fetch: Callable[[ServiceUrl], Any], said: list[bytes], make: Generator) -> None:
    """The same answer cut short, with a byte changed, or too deep: an error of ours, or part of it."""
    whole = said[0]
    said[0] = make.rng.choice((whole[: make.rng.randrange(len(whole))], bent(whole, make), whole + b"]"))
    try:
        for one in (await fetch(ORDERS)).instances:
            if oracle.dialled(one) is None or not oracle.clean(one):
                raise WrongRoute(f"{one}")
    except RegistryError:
        pass


async def play_etcd(seed: int, count: int, room: Path) -> int:
    make, said = Generator(seed), [b""]
    registry = EtcdRegistry(Gateway(answering(lambda _: httpx2.Response(200, content=said[0]))))
    for _ in range(count // BATCH):
        known: Known = {}
        pairs = [make.pair(PREFIX, noted(make.document(), known), 5) for _ in range(BATCH)]
        said[0] = json.dumps({"header": {"revision": "9"}, "kvs": pairs, "count": str(len(pairs))}).encode()
        judge((await registry.fetch(ORDERS)).instances, known)
        await broken(registry.fetch, said, make)
    return count


def noted(document: bytes, known: Known) -> bytes:
    """``document``, after telling ``known`` what it may be dialled at."""
    add(known, oracle.of_document(document))
    return document


class Events(httpx2.AsyncByteStream):
    """A watch that has ``lines`` to tell."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for line in self._lines:
            yield line + b"\n"


async def play_etcd_watch(seed: int, count: int, room: Path) -> int:
    make, known = Generator(seed), Known()

    def lines() -> Iterator[bytes]:
        yield b'{"result":{"header":{"revision":"1"},"created":true}}'
        for number in range(count // BATCH):
            known.clear()
            gone = [{"type": "DELETE", "kv": {"key": b64(PREFIX + one.id.encode())}} for one in listed]
            events = [{"kv": make.pair(PREFIX, noted(make.document(), known), number)} for _ in range(BATCH)]
            yield json.dumps({"result": {"header": {"revision": "9"}, "events": gone + events}}).encode()

    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v3/watch":
            return httpx2.Response(200, stream=Events(lines()))
        return httpx2.Response(200, json={"header": {"revision": "1"}})

    listed: tuple[Instance, ...] = ()
    seen = -1
    with pytest.raises(RegistryUnavailable, match="ended the watch"):
        async with aclosing(EtcdRegistry(Gateway(answering(handler))).watch(ORDERS)) as watch:  # type: ignore[type-var]
            async for listing in watch:
                listed, seen = listing.instances, seen + 1
                judge(listed, known)
    assert seen == count // BATCH
    return count


async def play_local(seed: int, count: int, room: Path) -> int:
    make, path = Generator(seed), room / "registry" / "registry.db"
    database = Database(path, clock=lambda: 1000.0, boot="boot")
    registry = LocalRegistry(database)
    await registry.fetch(ORDERS)  # makes the file
    with closing(sqlite3.connect(path)) as writer:
        for _ in range(count // BATCH):
            known: Known = {}
            with writer:
                writer.execute("DELETE FROM instances")
                for number in range(BATCH):
                    document = noted(make.document(), known)
                    strange = document if b'"good-' in document else storage(make, document)
                    writer.execute(
                        f"INSERT INTO instances VALUES ('', 'orders', {name(make, number)}, ?, 'boot', 9e9)", [strange]
                    )
            judge((await registry.fetch(ORDERS)).instances, known)
            assert await registry.services("") == ["orders"]
    await database.close()
    return count


def name(make: Generator, number: int) -> str:
    """A row's id as SQL: text, bytes, a number, or text that is no UTF-8."""
    return make.rng.choice(
        (
            f"'row-{number}'",
            f"'row-{number}' || char(10) || 'forged'",
            f"x'ff{number:02x}'",
            f"{number}",
            f"CAST(x'ff{number:02x}' AS TEXT)",
        )
    )


def storage(make: Generator, document: bytes) -> Any:
    """SQLite keeps in any column what it is given."""
    return make.rng.choice(
        (document, document, document, document.decode("utf-8", "replace"), 5, 1.5, document.decode("latin-1"))
    )


async def play_snapshot(seed: int, count: int, room: Path) -> int:
    make, store = Generator(seed), SnapshotStore(room, registry="memory://", max_age=1000.0, clock=lambda: 5000.0)
    store.save(Snapshot(ORDERS, (Instance("orders", "good-0", "10.0.0.5", 1),), confirmed=4999.0))
    (path,) = room.rglob("orders.json")
    rounds = count // 4
    for _ in range(rounds):
        known: Known = {}
        fields = [part for part in (msgspecced(noted(make.document(), known)) for _ in range(4)) if part is not None]
        content, intact = snapshot(make, fields)
        path.write_bytes(content)
        path.chmod(0o600)
        loaded = store.load(ORDERS)
        assert loaded or not intact
        judge(loaded.instances if loaded else (), known if loaded else {})
    return count


def msgspecced(document: bytes) -> dict[str, Any] | None:
    """A document as an attacker could put it into a snapshot with a right checksum; None when it could not be there."""
    found = oracle.read(document)
    try:
        return msgspec.json.decode(msgspec.json.encode(found)) if isinstance(found, dict) else None
    except (msgspec.MsgspecError, OverflowError, ValueError, RecursionError):
        return None


def snapshot(make: Generator, fields: list[dict[str, Any]]) -> tuple[bytes, bool]:
    """A snapshot that holds ``fields``, and whether it is intact and of today, so that it has to be used."""
    confirmed = make.rng.choice((4990.0, 4990.0, 5e9, -1e300))
    text = Document(1, "memory://", "orders", confirmed, "r", fields, [], {}).encode()
    more = (b"5,", b"{},", b"9" * 400 + b",", b'{"id":' + b"9" * 40 + b"},", b"[" * DEEP)
    match make.rng.randrange(6):
        case 0:
            return text[: make.rng.randrange(len(text))], False
        case 1:
            return bent(text, make), False
        case 2:
            return text.replace(b'"instances":[', b'"instances":[' + make.rng.choice(more)), False
    return text, confirmed > 0


def bent(text: bytes, make: Generator) -> bytes:
    """With one byte changed."""
    place = make.rng.randrange(len(text))
    return text[:place] + bytes([make.rng.randrange(256)]) + text[place + 1 :]


async def play_static(seed: int, count: int, room: Path) -> int:
    make, path = Generator(seed), room / "static.json"
    for _ in range(count // 2):
        known: Known = {}
        document = noted(make.document(), known)
        for to in known.pop("None", set()):  # without an id
            known[_named(to)] = {to}
        path.write_bytes(b'{"orders":[' + document + b"]}")
        await static_at(f"static://{path}", known, usable=b'"good-' in document)
        text = f"{make.host()}:{make.rng.choice(('8080', '0', '', '99999', '8O', '８０'))}"
        routes = {to for part in text.split(",") if (to := oracle.of_address(part))}
        await static_at(f"static://orders={text}", dict.fromkeys(map(_named, routes), routes))
    return count


def _named(route: oracle.Route) -> str:
    """The id of an instance without one."""
    _, address, at = route
    text = address if isinstance(address, str) else str(ipaddress.ip_address(address))
    return f"[{text}]:{at}" if ":" in text else f"{text}:{at}"


async def static_at(url: str, known: Known, *, usable: bool = False) -> None:
    """All or nothing: somebody wrote it by hand, and is told what is wrong."""
    try:
        found = (await open_backend(Settings(registry=url)).registry.fetch(ORDERS)).instances
    except MeshError:
        assert not usable
        return
    judge(found, known if found else {})


PLAYS: dict[str, Callable[[int, int, Path], Any]] = {
    "consul": play_consul, "etcd": play_etcd, "etcd_watch": play_etcd_watch, "local": play_local, "snapshot": play_snapshot,
    "static": play_static,
}  # fmt: skip
