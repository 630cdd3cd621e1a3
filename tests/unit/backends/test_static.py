"""Instances that are written down: in the URL and in a file."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshlib.backends import open_backend, static
from meshlib.backends.static import StaticRegistry, _File
from meshlib.errors import ConfigError, InvalidAnswer, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl, Status
from meshlib.settings import Settings
from tests.conformance.watching import Watching, ids

pytestmark = pytest.mark.anyio
ORDERS = ServiceUrl("orders")


def opened(url: str, **settings: Any) -> StaticRegistry:
    registry = open_backend(Settings(registry=url, **settings)).registry
    assert isinstance(registry, StaticRegistry)
    return registry


async def test_the_example() -> None:
    registry = opened(static.EXAMPLE)
    orders = (await registry.fetch(ORDERS)).instances
    assert [(one.id, one.scheme, one.host, one.port) for one in orders] == [
        ("10.0.0.5:8080", "http", "10.0.0.5", 8080),
        ("10.0.0.6:8080", "http", "10.0.0.6", 8080),
    ]
    users = (await registry.fetch(ServiceUrl("users"))).instances
    assert [(one.id, one.scheme, one.port) for one in users] == [("10.0.0.7:8443", "https", 8443)]
    assert await registry.services("") == ["orders", "users"]
    assert (await registry.fetch(ServiceUrl("nobody"))).instances == ()


async def test_the_url_comes_back_whole() -> None:
    settings = Settings(registry=static.EXAMPLE)
    assert str(settings.registry) == static.EXAMPLE
    assert opened(str(settings.registry))


async def test_ipv6_names_and_spaces() -> None:
    registry = opened("static://orders = [2001:db8::1]:8080 , api.example.org:80;")
    assert ids(await registry.fetch(ORDERS)) == ["[2001:db8::1]:8080", "api.example.org:80"]


async def test_namespaces() -> None:
    registry = opened("static://orders=10.0.0.5:80;shop.test.users=10.0.0.6:80", namespace="shop.prod")
    assert ids(await registry.fetch(ServiceUrl("orders", "shop.prod"))) == ["10.0.0.5:80"]
    assert ids(await registry.fetch(ServiceUrl("users", "shop.test"))) == ["10.0.0.6:80"]
    assert await registry.services("shop.prod") == ["orders"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("static://", "no instances"),
        ("static://orders", "'orders' is not of the form"),
        ("static://10.0.0.5:8080", "is not of the form service=host:port"),
        ("static://orders=10.0.0.5", "'10.0.0.5' of orders: a port is missing"),
        ("static://orders=[::1]", "a port is missing"),
        ("static://orders=10.0.0.5:99999", "10.0.0.5:99999.* of orders"),
        ("static://orders=10.0.0.5:http", "10.0.0.5:http"),
        ("static://orders=ftp://10.0.0.5:80", "'ftp' is not allowed"),
        ("static://orders=https://10.0.0.5:80/api", "80/api"),
        ("static://orders=2130706433:80", "as a number"),
        ("static://or ders=10.0.0.5:80", "'or ders' is no service name"),
        ("static://orders/1=10.0.0.5:80", "is no service name"),
        ("static://a=10.0.0.5:80;a=10.0.0.6:80", "twice"),
        ("static://orders=10.0.0.5:80?zone=a", "no options"),
    ],
)
def test_bad_text_is_named_with_an_example(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)MESH_REGISTRY .*{problem}.*for example static://orders="):
        opened(url)


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="no user or password") as caught:
        opened("static://orders=http://me:hunter2@10.0.0.5:80")
    assert "hunter2" not in str(caught.value)


async def test_registering_is_accepted() -> None:
    registry = opened("static://orders=10.0.0.5:80")
    mine = Instance("orders", "mine", "10.0.0.9", 80)
    await registry.register(mine, 10)
    assert await registry.heartbeat(mine, 10)
    await registry.deregister(mine)
    assert ids(await registry.fetch(ORDERS)) == ["10.0.0.5:80"]
    assert open_backend(Settings(registry="static://orders=10.0.0.5:80")).kv is None


async def test_watch_starts_with_the_present() -> None:
    async with Watching(opened("static://orders=10.0.0.5:80").watch(ORDERS)) as watching:
        assert ids(await watching.until(lambda _: True)) == ["10.0.0.5:80"]


# -- a file


def write(path: Path, document: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(document if isinstance(document, str) else json.dumps(document))
    new.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mesh.json"


@pytest.fixture
async def watching(path: Path) -> AsyncIterator[Watching]:
    write(path, {"orders": ["10.0.0.5:8080"]})
    async with Watching(StaticRegistry(_File(path, ""), poll=0.005).watch(ORDERS)) as watching:
        await watching.until(lambda listing: ids(listing) == ["10.0.0.5:8080"])
        yield watching


async def test_every_attribute(path: Path) -> None:
    full = {"id": "one", "host": "10.0.0.6", "port": 8443, "scheme": "https", "zone": "eu-1a", "version": "1.4", "weight": 5,
            "labels": {"team": "pay"}, "status": "maintenance"}  # fmt: skip
    write(path, {"orders": ["10.0.0.5:8080", full, {"host": "::1", "port": 80}]})
    found = {one.id: one for one in (await opened(f"static://{path}").fetch(ORDERS)).instances}
    assert sorted(found) == ["10.0.0.5:8080", "[::1]:80", "one"]
    assert found["one"] == Instance(
        "orders", "one", "10.0.0.6", 8443, "https", "1.4", "eu-1a", 5, {"team": "pay"}, Status.MAINTENANCE
    )


async def test_a_change_is_seen(watching: Watching, path: Path) -> None:
    write(path, {"orders": ["10.0.0.6:8080"]})
    await watching.until(lambda listing: ids(listing) == ["10.0.0.6:8080"])
    write(path, {})
    await watching.until(lambda listing: ids(listing) == [])


async def test_a_link_that_is_swapped_is_seen(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, {"orders": [f"{name}:80"]})
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "mesh.json"
    link.symlink_to("one")
    registry = opened(f"static://{link}")
    assert ids(await registry.fetch(ORDERS)) == ["one:80"]
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(link)
    assert ids(await registry.fetch(ORDERS)) == ["two:80"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "expected"),
        ('{"orders": ["10.0.0.5', "expected"),
        ('["10.0.0.5:80"]', "Expected `object`"),
        ("[" * 100_000, "expected"),
        ({"orders": "10.0.0.5:80"}, "Expected `array`"),
        ({"orders": ["10.0.0.6:80", "10.0.0.7"]}, "'10.0.0.7' of orders: a port is missing"),
        ({"orders": [{"host": "10.0.0.7"}]}, "host or port is missing"),
        ({"orders": [{"host": "10.0.0.7", "port": 80, "zon": "a"}]}, "unknown field 'zon'"),
        ({"orders": [{"host": "10.0.0.7", "port": 80, "id": "a b"}]}, "'a b' is not allowed"),
        ({"Or ders": []}, "is no service name"),
        ({"orders": [{"host": "10.0.0.7", "port": 80, "status": "x" * 100_000}]}, "'x"),
        ({"orders": [{"host": "10.0.0.7", "port": 80, "x" * 100_000: 1}]}, "unknown field 'xxx"),
    ],
)
async def test_a_bad_version_keeps_the_last_good_one(
    path: Path, content: object, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, {"orders": ["10.0.0.5:80"]})
    registry = opened(f"static://{path}")
    assert ids(await registry.fetch(ORDERS)) == ["10.0.0.5:80"]
    write(path, content)
    for _ in range(3):
        assert ids(await registry.fetch(ORDERS)) == ["10.0.0.5:80"]
    assert len(caplog.records) == 1
    assert len(caplog.records[0].getMessage()) < 1000
    assert str(path) in caplog.text
    assert problem in caplog.text
    write(path, {"orders": ["10.0.0.8:80"]})
    assert ids(await registry.fetch(ORDERS)) == ["10.0.0.8:80"]


async def test_a_missing_file_is_unavailable_until_it_comes(path: Path) -> None:
    registry = opened(f"static://{path}")
    for _ in range(2):
        with pytest.raises(RegistryUnavailable, match=rf"{path}.*No such file"):
            await registry.fetch(ORDERS)
    write(path, {"orders": ["10.0.0.5:80"]})
    assert ids(await registry.fetch(ORDERS)) == ["10.0.0.5:80"]
    path.unlink()
    assert ids(await registry.fetch(ORDERS)) == ["10.0.0.5:80"]


async def test_a_bad_file_at_the_start_is_an_invalid_answer(path: Path) -> None:
    write(path, "{")
    with pytest.raises(InvalidAnswer, match=str(path)):
        await opened(f"static://{path}").fetch(ORDERS)


async def test_a_pipe_does_not_hang(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(InvalidAnswer, match="not a plain file"):
        await opened(f"static://{path}").fetch(ORDERS)


async def test_too_large_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "MAX_FILE", 100)
    write(path, {"orders": ["10.0.0.5:80"] * 100})
    with pytest.raises(InvalidAnswer, match="larger than 100 bytes"):
        await opened(f"static://{path}").fetch(ORDERS)
