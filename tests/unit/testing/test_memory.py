"""A mesh in memory: the real stack over apps of the process, on a clock that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import fastapi
import flask
import httpx2
import pytest

from meshlib import (
    AttemptTimeout,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    Mesh,
    Mirror,
    NoInstances,
    Rule,
    ServerError,
    bulkhead,
    circuit_breaker,
    get,
    hedge,
    post,
    rate_limit,
    retry,
    route,
    service_client,
    time_left,
)
from meshlib.flow import Race
from meshlib.testing import MemoryMesh
from meshlib.testing.engine import _Course
from meshlib.testing.timeline import Timeline
from tests.servers.base import eventually

PAUSE = retry(attempts=4, base=1.0)
HEDGE = hedge(delay=0.1)
LIMIT = rate_limit("1/s", wait=5)
COPY = route(Rule(mirror=Mirror(service="shadow", percent=100)))


@service_client("orders", timeout=2.0)
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int) -> dict[str, Any]: ...
    @get("/orders/{id}")
    async def afetch(self, id: int) -> dict[str, Any]: ...
    @post("/orders")
    def create(self, order: dict[str, int]) -> dict[str, int]: ...
    @post("/orders")
    async def acreate(self, order: dict[str, int]) -> dict[str, int]: ...
    @get("/lines")
    def lines(self) -> Iterator[str]: ...
    @get("/lines")
    def alines(self) -> AsyncIterator[str]: ...


@service_client("orders", timeout=20.0)
class Governed(Protocol):
    @PAUSE
    @get("/orders/{id}")
    def retried(self, id: int) -> dict[str, Any]: ...
    @PAUSE
    @get("/orders/{id}")
    async def aretried(self, id: int) -> dict[str, Any]: ...
    @HEDGE
    @get("/orders/{id}")
    def hedged(self, id: int) -> dict[str, Any]: ...
    @HEDGE
    @get("/orders/{id}")
    async def ahedged(self, id: int) -> dict[str, Any]: ...
    @LIMIT
    @get("/orders/{id}")
    def limited(self, id: int) -> dict[str, Any]: ...
    @LIMIT
    @get("/orders/{id}")
    async def alimited(self, id: int) -> dict[str, Any]: ...
    @COPY
    @get("/orders/{id}")
    def copied(self, id: int) -> dict[str, Any]: ...
    @COPY
    @get("/orders/{id}")
    async def acopied(self, id: int) -> dict[str, Any]: ...
    @circuit_breaker(failure_rate=0.5, minimum=4, open_for=30.0)
    @get("/orders/{id}")
    def broken(self, id: int) -> dict[str, Any]: ...
    @circuit_breaker(failure_rate=0.5, minimum=4, open_for=30.0)
    @get("/orders/{id}")
    async def abroken(self, id: int) -> dict[str, Any]: ...
    @bulkhead(1, wait=5)
    @get("/orders/{id}")
    def alone(self, id: int) -> dict[str, Any]: ...
    @bulkhead(1, wait=5)
    @get("/orders/{id}")
    async def aalone(self, id: int) -> dict[str, Any]: ...


@retry(attempts=10, base=3600.0, cap=3600.0)
@service_client("orders", timeout=40_000.0)
class Patient(Protocol):
    @get("/orders/{id}")
    def retried(self, id: int) -> dict[str, Any]: ...
    @get("/orders/{id}")
    async def aretried(self, id: int) -> dict[str, Any]: ...


def echo(request: httpx2.Request) -> dict[str, Any]:
    return {"path": request.url.path}


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, mesh: MemoryMesh) -> Iterator[Callable[..., Any]]:
    """Calls ``name`` of a client, or the method ``a`` + ``name`` on an event loop, and returns the answer."""
    with asyncio.Runner() as runner:

        def ask(client: Any, name: str, *args: Any) -> Any:
            if request.param == "sync":
                return getattr(client, name)(*args)

            async def call() -> Any:  # a client's coroutine function may be called where there is no loop
                return await getattr(client, f"a{name}")(*args)

            return runner.run(call())

        yield ask


wsgi = flask.Flask("orders")
wsgi.add_url_rule("/orders/<int:id>", view_func=lambda **given: {"path": f"/orders/{given['id']}"}, endpoint="fetch")
wsgi.add_url_rule("/orders", view_func=lambda: flask.request.get_json(), endpoint="create", methods=["POST"])
wsgi.add_url_rule("/lines", view_func=lambda: flask.Response(iter(["a\n", "b\n"])), endpoint="lines")

asgi = fastapi.FastAPI()


@asgi.get("/orders/{id}")
def fetch(id: int) -> dict[str, str]:
    return {"path": f"/orders/{id}"}


@asgi.post("/orders")
async def create(order: dict[str, int]) -> dict[str, int]:
    return order


@asgi.get("/lines")
async def lines() -> fastapi.responses.StreamingResponse:
    return fastapi.responses.StreamingResponse(iter(["a\n", "b\n"]))


def function(request: httpx2.Request) -> Any:
    if request.method == "POST":
        return httpx2.Response(200, content=request.content)
    return "a\nb\n" if request.url.path == "/lines" else echo(request)


async def coroutine(request: httpx2.Request) -> Any:
    return function(request)


class TestApps:
    @pytest.mark.parametrize("app", [wsgi, asgi, function, coroutine], ids=["wsgi", "asgi", "def", "async def"])
    def test_every_kind_serves_every_caller(self, mesh: MemoryMesh, ask: Callable[..., Any], app: Any) -> None:
        mesh.add("orders", app, instances=2)
        orders = mesh.client(Orders)
        assert ask(orders, "fetch", 7) == {"path": "/orders/7"}
        assert ask(orders, "create", {"id": 1}) == {"id": 1}
        assert list(orders.lines()) == ["a", "b"]
        assert mesh.http("orders").get("/orders/8").json() == {"path": "/orders/8"}
        assert len(mesh.received("orders")) == 4

    @pytest.mark.parametrize("app", [wsgi, asgi, function, coroutine], ids=["wsgi", "asgi", "def", "async def"])
    def test_inside_an_event_loop(self, mesh: MemoryMesh, app: Any) -> None:
        mesh.add("orders", app)

        async def main() -> None:
            orders = mesh.client(Orders)
            assert orders.fetch(1) == {"path": "/orders/1"}  # blocking, as badly as it would be elsewhere
            assert [line async for line in orders.alines()] == ["a", "b"]
            async with mesh.ahttp("orders") as http:
                assert (await http.get("/orders/2")).json() == {"path": "/orders/2"}

        asyncio.run(main())

    def test_an_app_that_raises_is_a_server_that_answers_500(
        self, mesh: MemoryMesh, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(request: httpx2.Request) -> Any:
            raise KeyError("stock")

        mesh.add("orders", broken)
        with pytest.raises(ServerError, match="KeyError: 'stock'"):
            ask(mesh.client(Orders), "fetch", 7)
        assert "the app raised at GET /orders/7" in caplog.text

    def test_what_an_app_asserts_is_the_tests(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        def strict(request: httpx2.Request) -> Any:
            assert "X-Tenant" in request.headers

        mesh.add("orders", strict)
        with pytest.raises(AssertionError):
            ask(mesh.client(Orders), "fetch", 7)

    def test_it_has_the_deadline_of_the_request_and_passes_it_on(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        seen = []

        def back(request: httpx2.Request) -> Any:
            seen.append(time_left())

        def front(request: httpx2.Request) -> Any:
            mesh.sleep(0.5)
            mesh.client(Back).go()
            return {}

        @service_client("back", timeout=60.0)
        class Back(Protocol):
            @get("/")
            def go(self) -> None: ...

        mesh.add("orders", front)
        mesh.add("back", back)
        ask(mesh.client(Orders), "fetch", 7)
        assert seen == [pytest.approx(1.5, abs=0.002)]
        assert time_left() is None

    @pytest.mark.parametrize("app", [7, lambda: None, lambda a, b, c, d: None])
    def test_what_is_no_app(self, mesh: MemoryMesh, app: Any) -> None:
        with pytest.raises(ConfigError, match=r"neither a WSGI app, an ASGI app nor a function .* mesh.add"):
            mesh.add("orders", app)


class TestTime:
    def test_pauses_of_a_retry_pass_on_the_clock_only(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo, instances=2)
        mesh.fail("orders", status=503)
        begun, real = mesh.now, time.monotonic()
        with pytest.raises(ServerError):
            ask(mesh.client(Governed), "retried", 7)
        assert 0.01 < mesh.now - begun < 7.0  # three pauses with full jitter: up to 1, 2 and 4 s
        begun = mesh.now
        with pytest.raises(ServerError):
            ask(mesh.client(Patient), "retried", 7)
        assert mesh.now - begun > 600  # nine pauses with full jitter
        assert time.monotonic() - real < 600
        mesh.fail("orders", share=0.0)
        now = mesh.now
        assert ask(mesh.client(Governed), "retried", 7) == {"path": "/orders/7"}
        assert mesh.now == now

    def test_a_slow_instance_takes_its_time(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo)
        mesh.slow("orders", 0, 1.5)
        begun = mesh.now
        ask(mesh.client(Orders), "fetch", 7)
        assert mesh.now == pytest.approx(begun + 1.5)

    def test_one_that_hangs_costs_the_time_out(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo, instances=2)
        mesh.hang("orders", 0)
        begun = mesh.now
        with pytest.raises(AttemptTimeout):
            ask(mesh.client(Orders), "fetch", 7)
        assert mesh.now == pytest.approx(begun + 2.0)
        assert ask(mesh.client(Orders), "fetch", 8) == {"path": "/orders/8"}

    def test_a_hedge_begins_after_its_delay(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo, instances=2)
        mesh.slow("orders", 0, 1.0)
        begun = mesh.now
        ask(mesh.client(Governed), "hedged", 7)
        assert mesh.now == pytest.approx(begun + 0.1)
        assert [each.instance for each in mesh.received("orders")] == [1]
        time.sleep(0.01)  # the one that lost, in its thread, lets no time pass
        assert mesh.now == pytest.approx(begun + 0.1)

    def test_without_one_it_takes_as_long_as_the_instance(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        """The control of the test above."""
        mesh.add("orders", echo, instances=2)
        mesh.slow("orders", 0, 1.0)
        begun = mesh.now
        ask(mesh.client(Orders), "fetch", 7)
        assert mesh.now == pytest.approx(begun + 1.0)

    def test_waiting_for_a_turn(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo)
        begun, client = mesh.now, mesh.client(Governed)
        for number in range(3):
            ask(client, "limited", number)
            assert mesh.now == pytest.approx(begun + number, abs=0.01)

    def test_a_circuit_closes_when_its_time_is_up(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo, instances=2)
        mesh.fail("orders")
        client = mesh.client(Governed)
        for number in range(4):
            with pytest.raises(ServerError):
                ask(client, "broken", number)
        mesh.fail("orders", share=0.0)
        with pytest.raises(CircuitOpen):
            ask(client, "broken", 7)
        mesh.advance(29.0)
        with pytest.raises(CircuitOpen):
            ask(client, "broken", 7)
        mesh.advance(1.1)
        assert ask(client, "broken", 7) == {"path": "/orders/7"}

    def test_an_outlier_is_out_for_its_time(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo, instances=4)
        mesh.fail("orders", 0)
        orders = mesh.client(Orders)

        def round_of_calls() -> int:
            before = sum(provider.faults.failed for provider in mesh._providers["orders"])
            for number in range(8):
                try:
                    ask(orders, "fetch", number)
                except ServerError:
                    pass
            return sum(provider.faults.failed for provider in mesh._providers["orders"]) - before

        assert round_of_calls() == 2
        for _ in range(3):
            round_of_calls()
            mesh.advance(1.0)
        assert round_of_calls() == 0
        mesh.advance(31.0)
        assert round_of_calls() > 0

    def test_tasks_wait_side_by_side(self, mesh: MemoryMesh) -> None:
        mesh.add("orders", echo, instances=3)
        mesh.slow("orders", seconds=1.0)
        begun = mesh.now

        async def main() -> None:
            await asyncio.gather(*[mesh.client(Orders).afetch(number) for number in range(9)])
            assert mesh.now == pytest.approx(begun + 1.0)
            governed = mesh.client(Governed)
            await asyncio.gather(*[governed.aalone(number) for number in range(4)])
            assert mesh.now == pytest.approx(begun + 5.0)

        asyncio.run(main())

    def test_threads_take_turns_at_a_bulkhead(self, mesh: MemoryMesh) -> None:
        mesh.add("orders", echo)
        mesh.slow("orders", seconds=1.0)
        begun = mesh.now
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(mesh.client(Governed).alone, range(4)))
        assert mesh.now == pytest.approx(begun + 4.0)

    def test_tasks_inside_of_an_app_wait_side_by_side(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        @service_client("back")
        class Back(Protocol):
            @get("/")
            async def go(self) -> None: ...

        async def front(request: httpx2.Request) -> Any:
            back = mesh.client(Back)
            await asyncio.gather(back.go(), back.go(), mesh.asleep(0.75))
            return {}

        mesh.add("back", lambda request: None, instances=2)
        mesh.slow("back", seconds=0.5)
        mesh.add("orders", front)
        begun = mesh.now
        ask(mesh.client(Orders), "fetch", 7)
        assert mesh.now == pytest.approx(begun + 0.75)

    def test_frozen_time_passes_by_advance_only(self, mesh: MemoryMesh) -> None:
        mesh.add("orders", echo)
        mesh.slow("orders", seconds=1.5)
        orders = mesh.client(Orders)

        async def main() -> None:
            with mesh.frozen():
                task = asyncio.create_task(orders.afetch(7))
                await mesh.aadvance(1.0)
                assert not task.done()
                with pytest.raises(RuntimeError, match=r"use `await mesh.aadvance"):
                    mesh.advance(0.5)
                with pytest.raises(RuntimeError, match="nobody could let it pass"):
                    orders.fetch(8)
                await mesh.aadvance(0.5)
                assert task.done()
                assert await task == {"path": "/orders/7"}

        asyncio.run(main())

    def test_a_caller_that_is_cancelled_is_not_waited_for(self, mesh: MemoryMesh) -> None:
        mesh.add("orders", echo)
        mesh.slow("orders", seconds=1.5)
        orders = mesh.client(Orders)

        async def main() -> None:
            with mesh.frozen():
                tasks = [asyncio.create_task(orders.afetch(number)) for number in range(2)]
                await mesh.aadvance(1.0)
                tasks[0].cancel()
            begun = mesh.now
            assert await tasks[1] == {"path": "/orders/1"}
            assert mesh.now == pytest.approx(begun + 0.5)
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]

        asyncio.run(main())

    def test_it_does_not_go_backwards(self, mesh: MemoryMesh) -> None:
        with pytest.raises(ValueError, match="does not go backwards"):
            mesh.advance(-1)
        with pytest.raises(ValueError, match="not a number of seconds"):
            mesh.sleep(-1)


class TestFaults:
    def test_a_killed_instance_is_gone_round_and_unlisted(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo, instances=3)
        orders = mesh.client(Orders)
        ask(orders, "fetch", 0)
        mesh.kill("orders", 0)
        for number in range(9):
            assert ask(orders, "fetch", number) == {"path": f"/orders/{number}"}
        assert len(mesh.received("orders", 0)) == 1
        listed = mesh.snapshot("orders")
        assert listed is not None
        assert len(listed.instances) == 3
        mesh.advance(16.0)  # its lease is over, and nobody is there
        listed = mesh.snapshot("orders")
        assert listed is not None
        assert [each.id for each in listed.instances] == ["orders-1", "orders-2"]
        mesh.revive("orders", 0)
        for number in range(3):
            ask(orders, "fetch", number)
        assert len(mesh.received("orders", 0)) == 2

    def test_all_killed(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        """The control of the test above: nobody is left to go to."""
        mesh.add("orders", echo, instances=2)
        mesh.kill("orders")
        with pytest.raises(ConnectFailed):
            ask(mesh.client(Orders), "fetch", 7)

    def test_one_killed_while_it_works(self, mesh: MemoryMesh) -> None:
        mesh.add("orders", echo, instances=2)
        mesh.slow("orders", 0, 1.0)
        orders = mesh.client(Orders)

        async def main() -> None:
            with mesh.frozen():
                task = asyncio.create_task(orders.afetch(7))
                await mesh.aadvance(0.5)
                mesh.kill("orders", 0)
                await mesh.aadvance(0.6)
            assert await task == {"path": "/orders/7"}
            assert [each.instance for each in mesh.received("orders")] == [1]

        asyncio.run(main())

    def test_a_flapping_instance(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo)
        mesh.flap("orders", every=10.0)
        outcomes = []
        for _ in range(4):
            mesh.advance(5.0)
            try:
                ask(mesh.client(Orders), "fetch", 7)
                outcomes.append("answered")
            except ConnectFailed:
                outcomes.append("refused")
        assert outcomes == ["refused", "answered", "answered", "refused"]

    def test_a_share_of_failures_is_exact(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo)
        mesh.fail("orders", status=503, share=0.25)
        failed = 0
        for number in range(12):
            try:
                ask(mesh.client(Orders), "fetch", number)
            except ServerError as error:
                failed += error.status == 503
        assert failed == 3

    def test_the_registry_is_gone_at_the_start(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo)
        mesh.partition_registry()
        orders, begun = mesh.client(Orders), mesh.now
        with pytest.raises(NoInstances, match="the memory registry is down"):
            ask(orders, "fetch", 7)
        assert mesh.now == pytest.approx(begun + 2.0)  # the time-out of the client
        mesh.heal_registry()
        mesh.advance(1.0)
        assert ask(orders, "fetch", 7) == {"path": "/orders/7"}

    def test_the_registry_goes_away(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo)
        orders = mesh.client(Orders)
        ask(orders, "fetch", 0)
        mesh.partition_registry()
        mesh.add("orders", echo)  # nobody hears of it
        mesh.advance(100.0)
        for number in range(4):
            ask(orders, "fetch", number)
        assert not mesh.view("orders").live
        assert not mesh.received("orders", 1)
        mesh.heal_registry()
        mesh.advance(1.0)
        assert mesh.view("orders").live
        ask(orders, "fetch", 0)
        ask(orders, "fetch", 1)
        assert mesh.received("orders", 1)

    def test_an_instance_that_leaves(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo, instances=2)
        orders = mesh.client(Orders)
        ask(orders, "fetch", 0)
        mesh.remove("orders", 0)
        before = len(mesh.received("orders", 0))
        for number in range(4):
            ask(orders, "fetch", number)
        assert len(mesh.received("orders", 0)) == before

    def test_copies_are_made_aside(self, mesh: MemoryMesh, ask: Callable[..., Any]) -> None:
        mesh.add("orders", echo)
        mesh.add("shadow", echo)
        begun = mesh.now
        assert ask(mesh.client(Governed), "copied", 7) == {"path": "/orders/7"}
        assert mesh.now == begun
        (copy,) = mesh.received("shadow")
        assert (copy.path, copy.headers["X-Mesh-Shadow"]) == ("/orders/7", "1")

    def test_a_slow_copy_is_not_waited_for(self, mesh: MemoryMesh) -> None:
        mesh.add("orders", echo)
        mesh.add("shadow", echo)
        mesh.slow("shadow", seconds=1.0)
        begun = mesh.now
        mesh.client(Governed).copied(7)
        assert (mesh.now, mesh.received("shadow")) == (begun, [])
        mesh.advance(1.0)
        assert len(mesh.received("shadow")) == 1

    def test_mistakes(self, mesh: MemoryMesh) -> None:
        mesh.add("orders", echo)
        with pytest.raises(ConfigError, match=r"order.*was not added to this mesh \(which has: orders\)"):
            mesh.kill("order")
        with pytest.raises(ConfigError, match="is not there: it has 0 to 0"):
            mesh.slow("orders", 1)
        with pytest.raises(ValueError, match="not in 0..1"):
            mesh.fail("orders", share=2)
        with pytest.raises(ValueError, match="no interval"):
            mesh.flap("orders", every=0)
        mesh.hang("orders")
        with pytest.raises(AssertionError, match="it would never end"):
            mesh.http("orders", timeout=None).get("/")


def test_it_is_a_mesh_like_any_other(mesh: MemoryMesh) -> None:
    assert isinstance(mesh, Mesh)
    mesh.add("orders", echo, version="1.2.0", zone="lab", labels={"track": "canary"})
    (instance,) = mesh.snapshot("orders").instances  # type: ignore[union-attr]
    assert (instance.version, instance.zone, instance.labels) == ("1.2.0", "lab", {"track": "canary"})
    assert "orders-0" in str(mesh.explain("orders"))


def test_two_share_nothing(mesh: MemoryMesh) -> None:
    mesh.add("orders", echo)
    with MemoryMesh() as other:
        assert not other.snapshot("orders", timeout=0).instances  # type: ignore[union-attr]


def test_closing_leaves_nothing_behind() -> None:
    before = set(threading.enumerate())
    with MemoryMesh() as mesh:
        mesh.add("orders", echo)
        mesh.client(Orders).fetch(7)
        assert set(threading.enumerate()) <= before, "a blocking caller needs no thread"
    assert not mesh._worker.running


def test_closing_ends_the_threads_that_helped_beside_a_loop() -> None:
    async def awaiting(request: httpx2.Request) -> dict[str, Any]:
        return echo(request)

    def helpers() -> set[str]:
        return {one.name for one in threading.enumerate() if one not in before and one.name.startswith("meshlib-testing")}

    async def main() -> None:
        orders = mesh.client(Orders)
        await orders.afetch(7)
        orders.fetch(8)
        assert {name.rstrip("0123456789") for name in helpers()} == {"meshlib-testing-", "meshlib-testing-app-"}

    before = set(threading.enumerate())
    with MemoryMesh() as mesh:
        for _ in range(2):
            mesh.add("orders", awaiting)
            asyncio.run(main())
            mesh.close()
            eventually(lambda: not helpers())


def test_an_end_that_is_told_after_it_was_fetched_is_no_reason_to_begin_the_next_attempt() -> None:
    timeline = Timeline()
    course = _Course(Race(lambda _: iter(()), (), 1.0), None, timeline)  # type: ignore[arg-type]
    lost = (None, ZeroDivisionError())
    course._ends.put(lost)
    assert course.wait(1.0) is lost
    real, late = timeline.wait, [1]

    def wait(seconds: float, future: Any) -> bool:
        while late:  # now its thread comes to it
            late.pop()
            ended, course._ended = course._ended, Future()
            ended.set_result(None)
        return real(seconds, future)

    timeline.wait = wait  # type: ignore[method-assign, assignment]
    begun = timeline.clock()
    assert course.wait(1.0) is None
    assert timeline.clock() == begun + 1.0


def test_who_is_woken_when_it_is_known_that_all_wait_keeps_time_from_passing() -> None:
    """By a thread that is in no call: one that closes an answer, say."""
    timeline, place = Timeline(), Future[None]()
    real = timeline._to

    def to(due: float) -> bool:
        if not place.done():
            place.set_result(None)
        return real(due)

    timeline._to = to  # type: ignore[method-assign]
    begun = timeline.clock()
    assert timeline.wait(5.0, place)
    assert timeline.clock() == begun


def test_another_event_loop_is_told_apart(mesh: MemoryMesh) -> None:
    """As under trio: a coroutine that runs while asyncio does not."""
    mesh.add("orders", echo)
    for coroutine in (mesh.client(Orders).afetch(7), mesh.aadvance(1.0)):
        with pytest.raises(RuntimeError, match=r"need asyncio.*trio.*anyio_backend"):
            coroutine.send(None)
