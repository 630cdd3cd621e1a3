"""Deadlines: one budget for the whole call, a limit for each attempt, and what goes to the next hop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Protocol

import httpx2
import pytest

from meshlib import Mesh, Settings, get, service_client
from meshlib import deadline as deadlines
from meshlib.balance.layer import Balance
from meshlib.errors import AttemptTimeout, ConfigError, DeadlineExceeded
from meshlib.events import Events
from meshlib.flow import Call, Flow, Layer, Next, Sleep
from meshlib.policies import retry, timeout
from meshlib.policies.base import Site
from meshlib.policies.failover import Failover
from meshlib.testing import FakeClock, Played, Reply, play, run_virtual
from tests.unit.flows import FakeSource, call_to, fleet, idle, in_turn

LIMITS = {"connect": 1.0, "read": None, "write": 9.0, "pool": 1.0}


class Scene:
    """Calls under policies, through the balancer, on a clock of their own."""

    def __init__(self, *policies: Any, names: str = "ab", between: Layer | None = None) -> None:
        self.clock, self.events, self.fleet = FakeClock(), Events(), fleet(*names)
        site = Site(service="orders", method="get", events=self.events, clock=self.clock, uniform=lambda: 0.5)
        bound = [policy.bind(site) for policy in policies]
        balance = Balance(FakeSource(self.fleet), in_turn, clock=self.clock)
        self.layers = [*bound, *([between] if between else []), Failover(), balance]

    def play(self, *script: Any, **call: Any) -> Played:
        played = play(self.layers, script, call=call_to(**call), clock=self.clock)
        if played.result is not None:
            played.result.close()
        assert idle(self.fleet)
        return played


def header(call: Call) -> list[bytes]:
    return [value for name, value in call.headers if name == b"X-Mesh-Deadline"]


def takes(seconds: float, problem: type[Exception] = DeadlineExceeded, clock: FakeClock | None = None) -> Any:
    def attempt(_call: Call) -> Reply:
        assert clock is not None
        clock.advance(seconds)
        raise problem("slow")

    return attempt


@pytest.mark.parametrize("options", [
    {"seconds": 0}, {"seconds": -1}, {"seconds": "2"}, {"seconds": True}, {"seconds": 1e9}, {"seconds": float("nan")},
    {"seconds": 1.0, "attempt": 0}, {"seconds": 1.0, "attempt": 2.0},
])  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"timeout\((seconds|attempt)=…\).*for example timeout\(2.0"):
        timeout(**options)


def test_policies_compare() -> None:
    assert timeout(2.0) == timeout(2.0)
    assert len({timeout(2.0), timeout(2.0, attempt=1.0), timeout(2.0)}) == 2


class TestBudget:
    def test_what_is_left_bounds_the_engine_and_goes_to_the_instance(self) -> None:
        played = Scene(timeout(2.0)).play(Reply(), extensions={"timeout": LIMITS, "x": 1})
        (sent,) = played.sent
        assert sent.extensions == {"timeout": {"connect": 1.0, "read": 2.0, "write": 2.0, "pool": 1.0}, "x": 1}
        assert header(sent) == [b"2000"]

    def test_the_next_attempt_has_the_rest(self) -> None:
        scene = Scene(timeout(2.0), retry(attempts=2, base=1.0))
        played = scene.play(Reply(503, seconds=0.25), Reply(), extensions={"timeout": LIMITS})
        assert played.slept == (0.5,)
        assert [header(call) for call in played.sent] == [[b"2000"], [b"1250"]]
        assert played.sent[1].extensions["timeout"]["read"] == 1.25

    def test_without_a_deadline_nothing_is_said(self) -> None:
        played = Scene().play(Reply(), extensions={"timeout": LIMITS})
        assert header(played.sent[0]) == []
        assert played.sent[0].extensions["timeout"] is LIMITS

    def test_what_waited_too_long_above_is_not_sent(self) -> None:
        def queue(call: Call, proceed: Next) -> Flow:
            yield Sleep(2.0)
            return (yield from proceed(call))

        scene = Scene(timeout(2.0), between=queue)
        played = scene.play()
        assert isinstance(played.error, DeadlineExceeded)
        assert played.sent == ()
        assert scene.events.counts() == {("timeout.exceeded", "orders", "get"): 1}

    def test_it_stands_in_place_of_the_clients_own(self) -> None:
        played = Scene(timeout(9.0)).play(Reply(), deadline=1002.0)
        assert played.sent[0].deadline == 1009.0

    def test_what_is_handed_to_the_call_below_is_released(self) -> None:
        released: list[str] = []

        def holding(call: Call, proceed: Next) -> Flow:
            call.on_close(lambda: released.append("it"))
            return (yield from proceed(call))

        played = play([timeout(2.0).bind(Site()), holding], [Reply()])
        assert released == []
        played.result.close()
        assert released == ["it"]


class TestAttempt:
    def test_its_limit_is_a_time_out_of_the_attempt(self) -> None:
        """A body that trickles is ended by the engine at the deadline it sees, which is the attempt's."""
        scene = Scene(timeout(2.0, attempt=0.5), retry(attempts=2, base=0.0))
        played = scene.play(takes(0.5, clock=scene.clock), Reply(), extensions={"timeout": LIMITS})
        assert [header(call) for call in played.sent] == [[b"500"], [b"500"]]
        assert played.sent[0].extensions["timeout"] == {"connect": 0.5, "read": 0.5, "write": 0.5, "pool": 0.5}
        assert played.status == 200
        assert [call.endpoint.instance.id for call in played.sent if call.endpoint] == ["a", "b"]

    def test_the_last_has_what_is_left(self) -> None:
        scene = Scene(timeout(2.0, attempt=1.5), retry(attempts=3, base=0.0))
        slow = takes(1.5, clock=scene.clock)
        played = scene.play(slow, takes(0.5, clock=scene.clock))
        assert [header(call) for call in played.sent] == [[b"1500"], [b"500"]]
        assert isinstance(played.error, DeadlineExceeded), "the whole call is over, and says so"

    def test_without_a_retry_it_is_an_attempt_error(self) -> None:
        scene = Scene(timeout(2.0, attempt=0.5))
        played = scene.play(takes(0.5, clock=scene.clock))
        assert isinstance(played.error, AttemptTimeout)
        assert isinstance(played.error.__cause__, DeadlineExceeded)
        assert scene.events.counts() == {}, "the call's own time was not over"

    def test_the_control_an_attempt_without_limit_ends_the_call(self) -> None:
        scene = Scene(timeout(2.0), retry(attempts=2, base=0.0))
        assert isinstance(scene.play(takes(2.0, clock=scene.clock)).error, DeadlineExceeded)


class TestInherited:
    def test_it_bounds_a_timeout(self) -> None:
        with deadlines.until(1001.0):
            assert Scene(timeout(2.0)).play(Reply()).sent[0].deadline == 1001.0

    def test_it_lengthens_none(self) -> None:
        with deadlines.until(1100.0):
            assert Scene(timeout(2.0)).play(Reply()).sent[0].deadline == 1002.0

    def test_none_within(self) -> None:
        with deadlines.until(1001.0):
            with deadlines.until(None):
                assert deadlines.time_left() is None
            assert deadlines.inherited() == 1001.0
        assert deadlines.inherited() is None


@pytest.mark.parametrize(("text", "seconds"), [
    ("1500", 1.5), (" 20 ", 0.02), ("0", 0.0), ("900, 100", 0.1), ("99999999999999999", 3600.0), ("", None), ("-5", None),
    ("1.5", None), ("١", None), ("5, x", None), ("1e3", None),
])  # fmt: skip
def test_the_header_of_a_request(text: str, seconds: float | None) -> None:
    assert deadlines.seconds_of(text) == seconds


class TestClients:
    """Of a mesh, over a mock: what the instance is told, and what the engine is given."""

    @pytest.fixture
    def seen(self) -> list[httpx2.Request]:
        return []

    @pytest.fixture
    def mesh(self, seen: list[httpx2.Request]) -> Iterator[Mesh]:
        def answer(request: httpx2.Request) -> httpx2.Response:
            seen.append(request)
            return httpx2.Response(200, json={"id": 1})

        settings = Settings(registry="static://orders=127.0.0.1:1", timeout=100.0)
        mock = httpx2.MockTransport(answer)
        with Mesh(settings, transport=lambda _: mock, async_transport=lambda _: mock) as made:
            yield made

    @staticmethod
    def told(request: httpx2.Request) -> float:
        return float(request.headers["X-Mesh-Deadline"]) / 1000

    def test_a_declared_client_says_what_it_has(self, mesh: Mesh, seen: list[httpx2.Request]) -> None:
        @service_client("orders", timeout=200.0)
        class Orders(Protocol):
            @get("/one")
            def one(self) -> dict[str, int]: ...
            @timeout(800.0)
            @get("/other")
            def other(self) -> dict[str, int]: ...

        orders = mesh.client(Orders)
        orders.one()
        orders.other()
        assert 100.0 < self.told(seen[0]) <= 200.0
        assert 700.0 < self.told(seen[1]) <= 800.0
        assert 700.0 < seen[1].extensions["timeout"]["read"] <= 800.0

    def test_a_plain_client_has_no_deadline_of_its_own(self, mesh: Mesh, seen: list[httpx2.Request]) -> None:
        mesh.http("orders").get("/")
        assert "X-Mesh-Deadline" not in seen[0].headers
        assert seen[0].extensions["timeout"]["read"] == 100.0

    def test_a_plain_client_with_a_timeout(self, mesh: Mesh, seen: list[httpx2.Request]) -> None:
        http = mesh.http("orders", policies=[timeout(300.0)])
        http.get("/")
        http.get("/", timeout=0.5)
        assert 200.0 < seen[0].extensions["timeout"]["read"] <= 300.0, "no longer bound by the default"
        assert seen[1].extensions["timeout"]["read"] == 0.5, "the narrower wish of one request holds"

    @pytest.mark.parametrize("library", ["http", "transport"])
    def test_what_serves_a_request_inherits_its_deadline(self, mesh: Mesh, seen: list[httpx2.Request], library: str) -> None:
        http = mesh.http("orders") if library == "http" else httpx2.Client(transport=mesh.transport(), base_url="http://orders")

        def app(environ: Any, start: Any) -> list[bytes]:
            http.get("/inner")
            start("200 OK", [])
            return []

        served = mesh.wsgi(app)
        served({"HTTP_X_MESH_DEADLINE": "70000"}, lambda *_: None).close()  # type: ignore[arg-type, attr-defined]
        served({}, lambda *_: None).close()  # type: ignore[arg-type, attr-defined]
        assert 0.0 < self.told(seen[0]) <= 70.0
        assert seen[0].extensions["timeout"]["read"] <= 70.0
        assert "X-Mesh-Deadline" not in seen[1].headers, "the next request in this thread has its own"

    def test_a_declared_call_in_a_request_too(self, mesh: Mesh, seen: list[httpx2.Request]) -> None:
        @service_client("orders", timeout=200.0)
        class Orders(Protocol):
            @get("/one")
            def one(self) -> dict[str, int]: ...

        orders = mesh.client(Orders)
        with deadlines.until(time.monotonic() + 50.0):
            orders.one()
        assert self.told(seen[0]) <= 50.0
        with deadlines.until(time.monotonic() - 1.0), pytest.raises(DeadlineExceeded):
            orders.one()
        assert len(seen) == 1, "nothing was sent for a request that is over"


class TestFunctions:
    def test_an_async_one_is_ended(self) -> None:
        ended: list[str] = []

        @timeout(200.0)
        async def slow() -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        with pytest.raises(DeadlineExceeded, match="slow"):
            asyncio.run(self.in_no_time(slow))
        assert ended == ["cancelled"]

    @staticmethod
    async def in_no_time(function: Any) -> Any:
        """Its time-outs are of the loop's clock: let the hour pass at once."""
        loop = asyncio.get_running_loop()
        start, passed = loop.time(), 0.0
        loop.time = lambda: start + passed  # type: ignore[method-assign]
        task = asyncio.ensure_future(function())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        passed = 1000.0
        return await task

    def test_the_control_without_it_nothing_ends_it(self) -> None:
        async def slow() -> str:
            await asyncio.sleep(5.0)
            return "done"

        assert run_virtual(slow()) == "done"

    def test_its_own_timeout_error_is_its_own(self) -> None:
        @timeout(200.0)
        async def function() -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            asyncio.run(function())  # type: ignore[arg-type]

    def test_a_limit_for_each_attempt(self) -> None:
        @timeout(2000.0, attempt=200.0)
        async def slow() -> None:
            await asyncio.sleep(3600)

        with pytest.raises(AttemptTimeout):
            asyncio.run(self.in_no_time(slow))

    def test_a_blocking_one_knows_what_is_left(self) -> None:
        @timeout(200.0)
        def function() -> float | None:
            return deadlines.time_left()

        left = function()
        assert left is not None
        assert 100.0 < left <= 200.0
        assert deadlines.time_left() is None

    def test_what_has_no_time_left_is_not_begun(self) -> None:
        begun: list[int] = []
        with deadlines.until(time.monotonic() - 1.0), pytest.raises(DeadlineExceeded):
            timeout(2.0)(lambda: begun.append(1))()
        assert begun == []

    def test_an_inner_timeout_does_not_reach_beyond_an_outer_one(self) -> None:
        @timeout(500.0)
        def inner() -> float | None:
            return deadlines.time_left()

        @timeout(200.0)
        def outer() -> float | None:
            return inner()

        assert (outer() or 999.0) <= 200.0
