"""Policy documents between real processes, over real stores: changes, bad pushes, a store that dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshlib.settings import Settings
from tests.servers.base import Server, eventually
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer
from tests.servers.follower import Process, list_one, put, with_kv

KEY = "policies/-/orders/current"
LIMITED = {"consumer": {"policies": {"rate_limit": {"limits": ["1/h"]}}}}


@contextmanager
def local(path: Path) -> Iterator[tuple[Settings, Server | None]]:
    yield Settings(registry=f"local://{path}/registry.db"), None


@contextmanager
def served(make: Callable[[], Any]) -> Iterator[tuple[Settings, Server | None]]:
    with closing(make()) as server:
        server.start()
        yield Settings(registry=f"{server.name}://127.0.0.1:{server.port}"), server


STORES = {"local": local, "consul": lambda _: served(ConsulServer), "etcd": lambda _: served(EtcdServer)}


@pytest.mark.parametrize("kind", STORES)
def test_documents_in_three_processes(kind: str, tmp_path: Path) -> None:
    with ExitStack() as ending:
        settings, server = ending.enter_context(STORES[kind](tmp_path))
        url = str(settings.registry)
        list_one(settings)

        def start(**environment: str) -> Process:
            return ending.enter_context(closing(Process(url, tmp_path, **environment)))

        three = [start() for _ in range(3)]
        for process in three:
            process.until("ready")
        assert [process.refused(3) for process in three] == [0, 0, 0]
        put(settings, LIMITED)
        for process in three:
            process.until("applied 1 kv")
        assert [process.refused(3) for process in three] == [2, 2, 2]
        with_kv(settings, lambda kv: kv.put(KEY, b'{"version": 2, "consumer": {"policies": {"rate_limit": {"limits": []}}}}'))
        for process in three:
            process.until("rejected 0")
        assert [process.refused(2) for process in three] == [2, 2, 2]
        if server is not None:
            when_it_dies(server, tmp_path, three, start)
        put(settings, {"version": 7})
        for process in three:
            process.until("applied 7 kv")
        assert [process.refused(2) for process in three] == [0] * len(three)


def when_it_dies(server: Server, state: Path, three: list[Process], start: Callable[..., Process]) -> None:
    """Those that run decide the same, and so does one that starts; with documents off it does not: they are what decides."""
    eventually(lambda: len(list(state.rglob("orders.json"))) == 2, what="the instances and the policies are on disk")
    server.kill()
    assert [process.refused(2) for process in three] == [2, 2, 2]
    late, control = start(), start(MESH_POLICIES="off")
    late.until("applied 1 disk")
    late.until("ready")
    control.until("ready")
    assert (late.refused(3), control.refused(3)) == (2, 0)
    server.start()
    three.append(late)
