"""The engines: requests as instances get them, errors as callers get them, bodies and what they hold."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from meshlib import transport
from meshlib.addressing import InstanceUrl
from meshlib.balance.endpoint import Endpoint
from meshlib.errors import AttemptTimeout, CallError, ConfigError, ConnectFailed, ConnectionLost, DeadlineExceeded
from meshlib.flow import Call, arun, run
from meshlib.model import Instance
from meshlib.settings import Settings
from meshlib.transport import BUFFER, INSTANCE, AsyncEngine, Engine, translate
from tests.unit.flows import call_to, fleet
from tests.unit.wiring import Dropping, World

V4 = Endpoint(Instance("orders", "a", "10.0.0.1", 8000))


def settings(**values: Any) -> Settings:
    return Settings(registry="memory://unused", **values)


def sent(call: Call, endpoint: Endpoint = V4, **values: Any) -> httpx2.Request:
    """The request that an instance gets for ``call``."""
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200)

    call.body = call.body or httpx2.ByteStream(b"")
    Engine(settings(**values), lambda _: httpx2.MockTransport(handler)).send(call.to(endpoint))
    return seen[0]


class TestRequest:
    def test_url_and_headers(self) -> None:
        request = sent(call_to(b"/x/%2F?a=1&b=%20", headers=[(b"X-One", b"1")]))
        assert str(request.url) == "http://10.0.0.1:8000/x/%2F?a=1&b=%20"
        assert request.headers.raw == [(b"Host", b"10.0.0.1:8000"), (b"X-One", b"1")]

    def test_ipv6(self) -> None:
        request = sent(call_to(b"/"), Endpoint(Instance("orders", "a", "::1", 8000)))
        assert str(request.url) == "http://[::1]:8000/"
        assert request.headers["host"] == "[::1]:8000"

    def test_the_host_that_the_caller_wishes_is_kept_alone(self) -> None:
        request = sent(call_to(b"/", headers=[(b"host", b"shop.example"), (b"X", b"1")]))
        assert request.headers.get_list("host") == ["shop.example"]

    def test_the_services_name_as_host_and_tls_name(self) -> None:
        request = sent(call_to(b"/"), host_header="service")
        assert request.headers["host"] == "orders"
        assert request.extensions["sni_hostname"] == "orders"

    def test_the_callers_tls_name_wins(self) -> None:
        request = sent(call_to(b"/", extensions={"sni_hostname": "mine"}), host_header="service")
        assert request.extensions["sni_hostname"] == "mine"

    def test_handlers_may_change_headers(self) -> None:
        request = sent(call_to(b"/"))
        request.headers["X"] = "1"
        assert request.headers["x"] == "1"

    @pytest.mark.parametrize("host", ["xn--mller-kva.example", "db_1", "a.b.", "1a", "::ffff:10.0.0.1"])
    def test_every_parsed_host_makes_a_url(self, host: str) -> None:
        one = Instance.parse({"service": "orders", "id": "a", "host": host, "port": 8000})
        assert sent(call_to(b"/x"), Endpoint(one)).url.raw_path == b"/x"


class TestInstanceUrl:
    ORIGIN = httpx2.URL("http://10.0.0.1:8000")

    @pytest.mark.parametrize("target", [b"/", b"/a/b?x=1&y=2", b"/?", b"/caf%C3%A9?q=%F0%9F%8D%8E", b"/a//b"])
    def test_it_is_the_url_that_parsing_gives(self, target: bytes) -> None:
        made, parsed = InstanceUrl(self.ORIGIN, target), httpx2.URL("http://10.0.0.1:8000" + target.decode())
        for part in _PARTS:
            assert getattr(made, part) == getattr(parsed, part), part
        assert made == parsed
        assert made == str(parsed)
        assert hash(made) == hash(str(made))
        assert made.copy_with(path="/z") == parsed.copy_with(path="/z")
        assert made.join("../q") == parsed.join("../q")
        assert str(made) in repr(made)

    def test_the_origin_stays(self) -> None:
        InstanceUrl(self.ORIGIN, b"/x")
        assert str(self.ORIGIN) == "http://10.0.0.1:8000"


@pytest.mark.parametrize(
    ("engine", "ours", "unsent"),
    [
        (httpx2.ConnectError, ConnectFailed, True),
        (httpx2.ConnectTimeout, ConnectFailed, True),
        (httpx2.PoolTimeout, AttemptTimeout, True),
        (httpx2.ReadTimeout, AttemptTimeout, False),
        (httpx2.WriteTimeout, AttemptTimeout, False),
        (httpx2.ReadError, ConnectionLost, False),
        (httpx2.WriteError, ConnectionLost, False),
        (httpx2.CloseError, ConnectionLost, False),
        (httpx2.RemoteProtocolError, ConnectionLost, False),
    ],
)
def test_the_table_of_errors(engine: Any, ours: type[CallError], unsent: bool) -> None:
    error = translate(engine("boom"), call_to(b"/").to(V4))
    assert type(error) is ours
    assert error.unsent is unsent  # type: ignore[attr-defined]
    assert error.instance is V4.instance
    assert str(error) == "GET orders at 10.0.0.1:8000: boom"


@pytest.mark.parametrize("engine", [httpx2.LocalProtocolError, httpx2.UnsupportedProtocol, httpx2.DecodingError])
def test_what_repeating_cannot_mend_is_a_plain_call_error(engine: Any) -> None:
    assert type(translate(engine("boom"), call_to(b"/"))) is CallError


Play = Callable[[World, Call], Any]


def play(world: World, call: Call) -> Any:
    return run(world.proceed["orders"], call, world.engine)


def aplay(world: World, call: Call) -> Any:
    return asyncio.run(arun(world.proceed["orders"], call, world.async_engine))


_PARTS = ["scheme", "raw_scheme", "host", "raw_host", "port", "netloc", "path", "raw_path", "query", "params", "fragment"]

both = pytest.mark.parametrize("shell", [play, aplay], ids=["run", "arun"])


def answering(*bodies: Any) -> tuple[World, list[str]]:
    """A world whose instances answer with these bodies (or raise them) in turn, and the addresses they were asked at."""
    left, asked = list(bodies), []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.host)
        body = left.pop(0)
        if isinstance(body, Exception):
            raise body
        return httpx2.Response(200, stream=body)

    return World(handler), asked


def get(**options: Any) -> Call:
    options.setdefault("extensions", {BUFFER: True})
    return call_to(b"/x", body=httpx2.ByteStream(b""), **options)


@both
class TestBodies:
    def test_buffered_is_in_memory_and_holds_nothing(self, shell: Play) -> None:
        body = Dropping(b"a", b"b")
        world, _ = answering(body)
        response = shell(world, get())
        assert world.idle()
        assert body.closed == 1
        assert response.read() == b"ab"
        assert response.request.url == "http://10.0.0.1:8000/x"
        assert response.extensions[INSTANCE].id == "a"

    def test_lost_in_the_middle_of_a_buffered_body_goes_to_another(self, shell: Play) -> None:
        broken = Dropping(b"a", failure=httpx2.ReadError("cut"))
        world, asked = answering(broken, Dropping(b"whole"))
        assert shell(world, get()).read() == b"whole"
        assert asked == ["10.0.0.1", "10.0.0.2"]
        assert broken.closed == 1

    def test_but_not_for_a_post(self, shell: Play) -> None:
        world, _ = answering(Dropping(b"a", failure=httpx2.ReadError("cut")))
        with pytest.raises(ConnectionLost):
            shell(world, get(method="POST"))
        assert world.idle()

    def test_a_body_that_trickles_beyond_the_deadline(self, shell: Play) -> None:
        start = time.monotonic() + 1000.0  # the engine's clock; by any other there is time enough
        now = itertools.count(start + 1.0)
        body, requests = Dropping(*[b"."] * 50), list[httpx2.Request]()

        def handler(request: httpx2.Request) -> httpx2.Response:
            requests.append(request)
            return httpx2.Response(200, stream=body)

        world = World(handler, clock=lambda: next(now))
        call = get(deadline=start + 10.0, extensions={BUFFER: True, "timeout": {"read": 60.0}})
        with pytest.raises(DeadlineExceeded) as caught:
            shell(world, call)
        assert caught.value.instance.id == "a"
        assert requests[0].extensions["timeout"]["read"] <= 9.5, "what was left when the body began"
        assert call.extensions["timeout"]["read"] == 60.0, "another attempt begins with the limits of the call"
        assert body.closed == 1
        assert world.idle()


class TestHeld:
    def test_until_closed(self) -> None:
        body = Dropping(b"a")
        world, _ = answering(body)
        response = play(world, get(extensions={}))
        assert not world.idle()
        assert b"".join(response.iter_bytes()) == b"a"
        assert world.idle()
        response.close()
        assert body.closed == 1

    def test_until_closed_async(self) -> None:
        world, _ = answering(Dropping(b"a"))

        async def scenario() -> None:
            response = await arun(world.proceed["orders"], get(extensions={}), world.async_engine)
            assert not world.idle()
            assert [chunk async for chunk in response.aiter_bytes()] == [b"a"]

        asyncio.run(scenario())
        assert world.idle()

    @both
    def test_until_dropped(self, shell: Play) -> None:
        world, _ = answering(Dropping(b"a"))
        response = shell(world, get(extensions={}))
        assert not world.idle()
        del response
        gc.collect()
        assert world.idle()

    def test_a_streamed_body_that_breaks_is_a_lost_connection(self) -> None:
        body = Dropping(b"a", failure=httpx2.ReadError("cut"))
        world, _ = answering(body)
        response = play(world, get(extensions={}))
        with pytest.raises(ConnectionLost, match="orders at 10.0.0.1:8000: cut"):
            response.read()
        response.close()
        assert world.idle()

    def test_cancelled_while_a_body_is_read(self) -> None:
        class Stalling(Dropping):
            async def __aiter__(self) -> Any:
                yield b"a"
                await asyncio.Event().wait()

        body = Stalling()
        world, _ = answering(body)

        async def scenario() -> None:
            task = asyncio.create_task(arun(world.proceed["orders"], get(), world.async_engine))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not world.idle()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio.run(scenario())
        assert world.idle()
        assert body.closed == 1


class Pool(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    def __init__(self) -> None:
        self.closed = 0

    def handle_request(self, _request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200)

    async def handle_async_request(self, _request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200)

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


class Seen(set[object]):
    """Attempts in flight that are over once somebody has looked so many ``times``."""

    def __init__(self, attempt: object, *, times: int) -> None:
        super().__init__({attempt})
        self.times = times

    def __len__(self) -> int:
        self.times -= 1
        return max(0, self.times)


class TestPools:
    def test_one_per_endpoint_closed_on_discard(self) -> None:
        made: list[Pool] = []
        engine = Engine(settings(), lambda _: made.append(Pool()) or made[-1])  # type: ignore[func-returns-value]
        one, other = Endpoint(V4.instance), Endpoint(V4.instance)
        for endpoint in (one, one, other):
            attempt = get().to(endpoint)
            engine.send(attempt)
            attempt.close()
        assert len(made) == 2
        engine.discard(one)
        engine.discard(one)
        assert [pool.closed for pool in made] == [1, 0]
        engine.close()
        assert [pool.closed for pool in made] == [1, 1]

    def test_whoever_comes_as_an_idle_service_is_left_keeps_the_connections(self) -> None:
        pool = Pool()
        engine = Engine(settings(), lambda _: pool)
        known = fleet("a", on_drained=engine.discard)
        begun = [get().to(known.endpoints()[0])]
        engine.send(begun[0])
        known.endpoints()[0].release(begun.pop())

        class Coming:
            """Between the look who is idle and what is done about it."""

            def prepare(self) -> None:
                begun.append(get().to(known.endpoints()[0]))

        known._watchers.add(coming := Coming())
        known.rest()
        assert (len(begun), pool.closed) == (1, 0)
        known.endpoints()[0].release(begun.pop())
        del coming
        known.rest()
        assert pool.closed == 1

    @pytest.mark.parametrize("ends", [False, True], ids=["and stays", "and ends at once"])
    def test_whoever_comes_as_a_gone_endpoint_is_left_keeps_the_connections(self, ends: bool) -> None:
        pool, endpoint = Pool(), Endpoint(V4.instance)
        engine = Engine(settings(), lambda _: pool)
        attempt = get().to(endpoint)
        engine.send(attempt)
        endpoint.in_flight = Seen(attempt, times=2 if ends else 3)
        engine.discard(endpoint)
        assert pool.closed == ends
        endpoint.in_flight = set()
        engine.discard(endpoint)
        assert pool.closed == 1

    def test_the_same_in_a_loop(self) -> None:
        pool, endpoint = Pool(), Endpoint(V4.instance)
        engine = AsyncEngine(settings(), lambda _: pool)

        async def scenario() -> None:
            attempt = get().to(endpoint)
            await engine.send(attempt)
            for closed in (0, 1):
                engine.discard(endpoint)
                for _ in range(3):
                    await asyncio.sleep(0)
                assert pool.closed == closed
                attempt.close()

        asyncio.run(scenario())

    def test_the_loser_of_a_race_closes_its_own(self) -> None:
        made: list[Pool] = []
        gate = threading.Barrier(2)

        def make(_instance: Instance) -> Pool:
            gate.wait(30.0)
            made.append(Pool())
            return made[-1]

        engine = Engine(settings(), make)
        racers = [threading.Thread(target=engine.send, args=(get().to(V4),)) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert sorted(pool.closed for pool in made) == [0, 1]

    def test_a_child_abandons_without_closing(self) -> None:
        pool = Pool()
        engine = Engine(settings(), lambda _: pool)
        engine.send(get().to(V4))
        engine.forked()
        engine.close()
        assert pool.closed == 0

    def test_a_child_keeps_the_parents_loops_from_being_destroyed(self) -> None:
        loop = asyncio.new_event_loop()
        engine = AsyncEngine(settings(), lambda _: Pool())
        loop.run_until_complete(engine.send(get().to(V4)))
        engine.forked()
        try:
            assert not engine._loops
            assert any(loop in kept for kept in transport._abandoned)  # type: ignore[operator]
        finally:
            transport._abandoned.clear()
            loop.close()

    def test_async_pools_belong_to_their_loop(self) -> None:
        made: list[Pool] = []
        engine = AsyncEngine(settings(), lambda _: made.append(Pool()) or made[-1])  # type: ignore[func-returns-value]

        async def twice() -> None:
            await engine.send(get().to(V4))
            await engine.send(get().to(V4))

        asyncio.run(twice())
        asyncio.run(twice())
        assert len(made) == 2
        assert len(engine._loops) == 1, "the closed loop is forgotten"

        async def close() -> None:
            await engine.send(get().to(V4))
            await engine.aclose()

        asyncio.run(close())
        assert made[-1].closed == 1

    def test_async_discard_closes_in_the_loop(self) -> None:
        pool, endpoint = Pool(), Endpoint(V4.instance)
        engine = AsyncEngine(settings(), lambda _: pool)

        async def scenario() -> None:
            attempt = get().to(endpoint)
            await engine.send(attempt)
            attempt.close()
            threading.Thread(target=engine.discard, args=(endpoint,)).start()
            async with asyncio.timeout(30):
                while not pool.closed:
                    await asyncio.sleep(0.001)

        asyncio.run(scenario())
        engine.close()
        assert pool.closed == 1


def test_unusable_tls_files_are_a_config_error(tmp_path: Any) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    engine = Engine(settings(tls_ca=str(broken)))
    with pytest.raises(ConfigError, match="MESH_TLS_CA"):
        engine.send(get().to(Endpoint(Instance("orders", "a", "10.0.0.1", 8000, "https"))))


def test_drop_closes_whatever_the_engine_says() -> None:
    response = httpx2.Response(200, stream=Dropping())

    class Broken(Dropping):
        def close(self) -> None:
            raise httpx2.CloseError("broken")

    Engine(settings()).drop(response)
    assert response.is_closed
    Engine(settings()).drop(httpx2.Response(200, stream=Broken()))
