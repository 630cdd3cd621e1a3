"""The pytest plugin, as somebody who has installed meshlib meets it: found by its entry point."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import meshlib.testing.memory  # noqa: F401 - what is imported already, the runs inside of this one share

pytest_plugins = ["pytester"]

CLIENT = """
import asyncio
from dataclasses import dataclass
from typing import Protocol
import pytest
from meshlib import NotFound, get, retry, service_client
from meshlib.testing import MemoryMesh, call

@dataclass
class Order:
    id: int

@service_client("orders", policies=[retry(attempts=3, base=10.0)], timeout=600.0)
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> Order: ...
    @get("/orders/{id}")
    async def later(self, id: int) -> Order: ...

def order(request):
    return Order(int(request.url.path.rpartition("/")[2]))
"""

SYNC = """
def test_it(mesh):
    mesh.add("orders", order, instances=2)
    mesh.fail("orders", 0, status=503)
    assert mesh.client(Orders).fetch(7) == Order(7)
    mesh.kill("orders", 0)
    mesh.advance(60)
    assert len(mesh.snapshot("orders").instances) == 1

def test_a_mock(mesh):
    mesh.mock(Orders).fetch.returns(Order(1))
    assert mesh.client(Orders).fetch(7) == Order(1)
    assert mesh.mock(Orders).fetch.calls == [call(id=7)]
"""

ASYNC = """
@pytest.mark.MARK
async def test_it(mesh):
    mesh.add("orders", order, instances=2)
    mesh.fail("orders", 0, status=503)
    assert await mesh.client(Orders).later(7) == Order(7)
    mesh.slow("orders", 1, 5.0)
    begun = mesh.now
    await asyncio.gather(*[mesh.client(Orders).later(number) for number in (1, 2)])
    assert mesh.now - begun < 600
    with mesh.frozen():
        task = asyncio.create_task(mesh.client(Orders).later(7))
        await mesh.aadvance(1.0)
    await task

@pytest.mark.MARK
async def test_a_mock(mesh):
    mesh.mock(Orders).later.returns(Order(1))
    assert await mesh.client(Orders).later(7) == Order(1)
"""

BACKEND = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n")
    return pytester


def run(inner: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    inner.makepyfile(CLIENT + code)
    return inner.runpytest_inprocess("-p", "no:cacheprovider", *options)


def test_it_is_found_by_its_entry_point() -> None:
    (found,) = entry_points(group="pytest11", name="meshlib")
    assert found.value == "meshlib.testing.plugin"


def test_without_any_other_plugin(inner: pytest.Pytester) -> None:
    inner.makeini("[pytest]\nfilterwarnings = error\n")  # the option above would be unknown
    run(inner, SYNC, "-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=2)


def test_under_pytest_asyncio(inner: pytest.Pytester) -> None:
    run(inner, ASYNC.replace("MARK", "asyncio")).assert_outcomes(passed=2)


def test_under_anyio(inner: pytest.Pytester) -> None:
    run(inner, BACKEND + ASYNC.replace("MARK", "anyio")).assert_outcomes(passed=2)


def test_settings_of_the_mesh(inner: pytest.Pytester) -> None:
    code = """
@pytest.fixture
def mesh_settings():
    return {"timeout": 3.0, "service": "shop"}

def test_it(mesh):
    assert (mesh.settings.timeout, mesh.settings.service) == (3.0, "shop")
    assert isinstance(mesh, MemoryMesh)
"""
    run(inner, code).assert_outcomes(passed=1)


def test_the_environment_is_not_looked_at(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_TIMEOUT", "rubbish")
    monkeypatch.setenv("MESH_REGISTRY", "consul://127.0.0.1:1")
    run(inner, SYNC).assert_outcomes(passed=2)


def test_failures_say_what_happened(inner: pytest.Pytester) -> None:
    code = """
def test_calls(mesh):
    mock = mesh.mock(Orders)
    mock.fetch.returns(Order(1))
    mesh.client(Orders).fetch(7)
    assert mock.fetch.calls == [call(id=8)]

def test_no_answer(mesh):
    mesh.mock(Orders)
    mesh.client(Orders).fetch(7)

def test_the_app_raises(mesh):
    def broken(request):
        raise KeyError("stock")
    mesh.add("orders", broken)
    mesh.client(Orders).fetch(7)

def test_nobody_serves(mesh):
    mesh.client(Orders).fetch(7)
"""
    result = run(inner, code)
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines([
        "*assert [[]call(id=7)[]] == [[]call(id=8)[]]*",
        "*AssertionError: Orders.fetch was called as call(id=7), and has no answer; say mock.fetch.returns(*",
        "*ServerError: GET orders/orders/7 at 192.0.2.1:8000 answered 500: KeyError: 'stock'*",
        "*the app raised at GET /orders/7*",
        "*NoInstances: orders: no instance is registered*",
    ])  # fmt: skip


def test_a_fixture_of_the_same_name_stands_in_its_place(inner: pytest.Pytester) -> None:
    code = """
@pytest.fixture
def mesh():
    return "mine"

def test_it(mesh):
    assert mesh == "mine"
"""
    run(inner, code).assert_outcomes(passed=1)


def test_unused_it_imports_next_to_nothing() -> None:
    code = "import sys, pytest\nbefore = set(sys.modules)\nimport meshlib.testing.plugin\nprint(*(set(sys.modules) - before))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(said) <= {"meshlib", "meshlib._version", "meshlib.testing", "meshlib.testing.plugin"}


def test_the_kit_itself_needs_no_pytest() -> None:
    code = "import sys\nfrom meshlib.testing import MemoryMesh, call\nMemoryMesh().close()\nassert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
