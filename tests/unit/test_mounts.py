"""The transports under clients of httpx2 and of plain httpx, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest

from meshlib.errors import (
    AttemptTimeout,
    CallError,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    NoInstances,
)
from meshlib.model import ServiceUrl
from meshlib.mounts import AsyncMeshClient, MeshClient, foreign
from tests.unit.flows import update
from tests.unit.wiring import Dropping, World

LIBRARIES = {"httpx2": httpx2, "httpx": httpx}


class Way:
    """One library, blocking or not: ``way.send(world, "GET", url, …)``."""

    def __init__(self, package: types.ModuleType, is_async: bool) -> None:
        self.package, self.is_async = package, is_async

    def client(self, world: World, **options: Any) -> Any:
        if self.is_async:
            return self.package.AsyncClient(mounts={"http://": world.atransport()}, trust_env=False, **options)
        return self.package.Client(mounts={"http://": world.transport()}, trust_env=False, **options)

    def with_client(self, client: Any, use: Callable[[Any], Any]) -> Any:
        async def scenario() -> Any:
            async with client:
                return await use(client)

        if self.is_async:
            return asyncio.run(scenario())
        with client:
            return use(client)

    def send(self, world: World, method: str, url: str, *, options: dict[str, Any] | None = None, **request: Any) -> Any:
        return self.with_client(self.client(world, **(options or {})), lambda client: client.request(method, url, **request))


ways = pytest.mark.parametrize(
    "way", [Way(library, is_async) for library in LIBRARIES.values() for is_async in (False, True)],
    ids=lambda way: f"{way.package.__name__}-{'async' if way.is_async else 'sync'}",
)  # fmt: skip


def echo(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={
        "url": str(request.url), "method": request.method, "body": request.content.decode(),
        "headers": [[key.lower(), value] for key, value in request.headers.multi_items()],
    })  # fmt: skip


@ways
class TestEvery:
    def test_a_call(self, way: Way) -> None:
        world = World(echo)
        response = way.send(world, "POST", "http://orders/a%2Fb?x=1", content=b"hi", headers={"X-One": "1"})
        assert isinstance(response, way.package.Response)
        said = response.json()
        assert (said["url"], said["method"], said["body"]) == ("http://10.0.0.1:8000/a%2Fb?x=1", "POST", "hi")
        assert ["host", "10.0.0.1:8000"] in said["headers"]
        assert ["x-one", "1"] in said["headers"]
        assert str(response.request.url) == "http://orders/a%2Fb?x=1"
        assert response.raise_for_status() is response
        assert world.idle()

    def test_elapsed(self, way: Way) -> None:
        response = way.send(World(lambda _: httpx2.Response(200, stream=Dropping(b"a"))), "GET", "http://orders/")
        assert response.elapsed.total_seconds() >= 0

    @pytest.mark.parametrize("headers", [{"Host": "shop.example"}, {"host": "shop.example", "A": "1"}])
    def test_an_explicit_host_is_kept_alone(self, way: Way, headers: dict[str, str]) -> None:
        said = way.send(World(echo), "GET", "http://orders/", headers=headers).json()
        assert [value for key, value in said["headers"] if key == "host"] == ["shop.example"]

    def test_a_port_in_the_url_means_nothing(self, way: Way) -> None:
        said = way.send(World(echo), "GET", "http://orders:81/x").json()
        assert said["url"] == "http://10.0.0.1:8000/x"
        assert [value for key, value in said["headers"] if key == "host"] == ["10.0.0.1:8000"]

    def test_base_url_with_a_prefix(self, way: Way) -> None:
        said = way.send(World(echo), "GET", "/x?y=1", options={"base_url": "http://orders/api/v1"}).json()
        assert said["url"] == "http://10.0.0.1:8000/api/v1/x?y=1"

    def test_cookies_belong_to_the_service(self, way: Way) -> None:
        def handler(request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, text=request.headers.get("cookie", ""), headers={"set-cookie": "a=1; Path=/"})

        async def ause(client: Any) -> str:
            await client.get("http://orders/")
            return str((await client.get("http://orders/")).text)

        def use(client: Any) -> Any:
            client.get("http://orders/")
            return client.get("http://orders/").text

        assert way.with_client(way.client(World(handler)), ause if way.is_async else use) == "a=1"

    def test_a_redirect_to_another_service(self, way: Way) -> None:
        def handler(request: httpx2.Request) -> httpx2.Response:
            if request.url.host.startswith("10.0.0."):
                return httpx2.Response(307, headers={"location": "http://stock/y"})
            return echo(request)

        response = way.send(World(handler), "POST", "http://orders/x", content=b"hi", follow_redirects=True)
        assert response.json()["url"] == "http://10.0.1.1:8000/y"
        assert response.json()["body"] == "hi"

    @pytest.mark.parametrize("rest", ["/x/", "/x/?a=1", ""])
    def test_a_redirect_of_an_instance_to_itself_goes_to_the_service(self, way: Way, rest: str) -> None:
        def handler(request: httpx2.Request) -> httpx2.Response:
            if request.url.path == "/x":
                return httpx2.Response(307, headers={"location": f"http://{request.headers['host']}{rest}"})
            return echo(request)

        response = way.send(World(handler), "GET", "http://orders/x", follow_redirects=True)
        assert response.json()["url"] == f"http://10.0.0.1:8000{rest or '/'}"
        assert str(response.url).removesuffix("/") == f"http://orders{rest}".removesuffix("/")

    def test_a_redirect_to_an_address_that_only_begins_like_it_is_left_alone(self, way: Way) -> None:
        world = World(lambda _: httpx2.Response(302, headers={"location": "http://10.0.0.1:80001/x"}))
        assert way.send(world, "GET", "http://orders/").headers["location"] == "http://10.0.0.1:80001/x"

    def test_a_redirected_get_may_still_be_repeated(self, way: Way) -> None:
        asked: list[str] = []

        def handler(request: httpx2.Request) -> httpx2.Response:
            asked.append(f"{request.url.host}{request.url.path}")
            if request.url.path == "/x":
                return httpx2.Response(307, headers={"location": "/y"})
            if len(asked) == 2:
                raise httpx2.ReadError("cut")
            return httpx2.Response(200)

        way.send(World(handler), "GET", "http://orders/x", follow_redirects=True)
        assert asked == ["10.0.0.1/x", "10.0.0.1/y", "10.0.0.2/y"]

    def test_compressed_answers(self, way: Way) -> None:
        packed = gzip.compress(b"hello")
        for body in ({"content": packed}, {"stream": Dropping(packed)}):
            world = World(lambda _, body=body: httpx2.Response(200, headers={"content-encoding": "gzip"}, **body))
            assert way.send(world, "GET", "http://orders/").text == "hello"
            assert world.idle()

    def test_a_streamed_answer(self, way: Way) -> None:
        body = Dropping(b"a", b"b")
        world = World(lambda _: httpx2.Response(200, stream=body))

        async def ause(client: Any) -> list[bytes]:
            async with client.stream("GET", "http://orders/") as response:
                assert not world.idle()
                return [chunk async for chunk in response.aiter_bytes()]

        def use(client: Any) -> list[bytes]:
            with client.stream("GET", "http://orders/") as response:
                assert not world.idle()
                return list(response.iter_bytes())

        assert way.with_client(way.client(world), ause if way.is_async else use) == [b"a", b"b"]
        assert world.idle()
        assert body.closed == 1

    def test_a_streamed_answer_left_early(self, way: Way) -> None:
        body = Dropping(b"a", b"b")
        world = World(lambda _: httpx2.Response(200, stream=body))

        async def ause(client: Any) -> None:
            async with client.stream("GET", "http://orders/"):
                pass

        def use(client: Any) -> None:
            with client.stream("GET", "http://orders/"):
                pass

        way.with_client(way.client(world), ause if way.is_async else use)
        assert world.idle()
        assert body.closed == 1

    def test_a_streamed_upload_goes_on_untouched(self, way: Way) -> None:
        refused: list[str] = []

        class Refusing:
            """Refuses the connection once, before it looks at the body."""

            def __init__(self) -> None:
                self.inner = httpx2.MockTransport(echo)

            def handle_request(self, request: httpx2.Request) -> httpx2.Response:
                if not refused:
                    refused.append(request.url.host)
                    raise httpx2.ConnectError("refused")
                return self.inner.handle_request(request)

            async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
                if not refused:
                    refused.append(request.url.host)
                    raise httpx2.ConnectError("refused")
                return await self.inner.handle_async_request(request)

        def chunks() -> Iterator[bytes]:
            yield b"on"
            yield b"ce"

        async def achunks() -> AsyncIterator[bytes]:
            yield b"on"
            yield b"ce"

        world = World(echo)
        world.engine._make = world.async_engine.make = lambda _: Refusing()  # type: ignore[assignment, return-value]
        response = way.send(world, "POST", "http://orders/", content=achunks() if way.is_async else chunks())
        assert response.json()["body"] == "once"
        assert response.json()["url"] == "http://10.0.0.2:8000/"
        assert refused == ["10.0.0.1"]

    @pytest.mark.parametrize(
        ("name", "ours", "base"),
        [("ConnectError", ConnectFailed, "ConnectError"), ("ConnectTimeout", ConnectFailed, "TimeoutException"),
         ("ReadTimeout", AttemptTimeout, "ReadTimeout"), ("PoolTimeout", AttemptTimeout, "PoolTimeout"),
         ("ReadError", ConnectionLost, "NetworkError"), ("RemoteProtocolError", ConnectionLost, "RemoteProtocolError"),
         ("LocalProtocolError", CallError, "LocalProtocolError")],
    )  # fmt: skip
    def test_errors_are_ours_and_theirs(self, way: Way, name: str, ours: type[CallError], base: str) -> None:
        def handler(_request: httpx2.Request) -> httpx2.Response:
            raise getattr(httpx2, name)("boom")

        world = World(handler)
        with pytest.raises(ours) as caught:
            way.send(world, "POST", "http://orders/")
        assert isinstance(caught.value, getattr(way.package, base))
        assert str(caught.value.request.url) == "http://orders/"  # type: ignore[attr-defined]
        assert caught.value.service == ServiceUrl("orders")
        assert world.idle()

    def test_nobody_is_a_connect_error(self, way: Way) -> None:
        world = World(echo)
        update(world.fleets["orders"])
        with pytest.raises(NoInstances) as caught:
            way.send(world, "GET", "http://orders/")
        assert isinstance(caught.value, way.package.ConnectError)

    @pytest.mark.parametrize("streamed", [True, False])
    def test_a_body_that_breaks(self, way: Way, streamed: bool) -> None:
        body = Dropping(b"a", failure=httpx2.ReadError("cut"))
        world = World(lambda _: httpx2.Response(200, stream=body))

        async def ause(client: Any) -> None:
            async with client.stream("GET", "http://orders/") as response:
                await response.aread()

        def use(client: Any) -> None:
            with client.stream("GET", "http://orders/") as response:
                response.read()

        with pytest.raises(ConnectionLost) as caught:
            if streamed:
                way.with_client(way.client(world), ause if way.is_async else use)
            else:
                way.send(world, "GET", "http://orders/")
        assert isinstance(caught.value, way.package.ReadError)
        assert world.idle()
        assert body.closed == 1

    def test_a_host_that_is_no_service_name(self, way: Way) -> None:
        with pytest.raises(ConfigError):
            way.send(World(echo), "GET", "http://two.labels/")

    def test_closing_a_client_leaves_the_meshs_connections(self, way: Way) -> None:
        world = World(echo)
        for _ in range(2):
            assert way.send(world, "GET", "http://orders/").status_code == 200


class TestReadyClients:
    """``mesh.http()``: what is read anyway is read within the attempt."""

    def flaky(self) -> tuple[World, list[str]]:
        asked: list[str] = []

        def handler(request: httpx2.Request) -> httpx2.Response:
            asked.append(request.url.host)
            failure = httpx2.ReadError("cut") if len(asked) == 1 else None
            return httpx2.Response(200, stream=Dropping(b"whole", failure=failure))

        return World(handler), asked

    def test_a_body_lost_in_the_middle_is_read_from_another(self) -> None:
        world, asked = self.flaky()
        with MeshClient(transport=world.transport()) as client:
            response = client.get("http://orders/")
        assert response.content == b"whole"
        assert asked == ["10.0.0.1", "10.0.0.2"]
        assert response.elapsed.total_seconds() >= 0
        assert response.num_bytes_downloaded == 5

    def test_async(self) -> None:
        world, asked = self.flaky()

        async def scenario() -> bytes:
            async with AsyncMeshClient(transport=world.atransport()) as client:
                return (await client.get("http://orders/")).content

        assert asyncio.run(scenario()) == b"whole"
        assert asked == ["10.0.0.1", "10.0.0.2"]

    def test_a_request_sent_again_as_a_stream_is_streamed(self) -> None:
        world = World(lambda _: httpx2.Response(200, stream=Dropping(b"a")))
        with MeshClient(transport=world.transport()) as client:
            request = client.build_request("GET", "http://orders/")
            client.send(request)
            response = client.send(request, stream=True)
            assert not response.is_stream_consumed
            assert not world.idle()
            response.close()
        assert world.idle()

    @pytest.mark.parametrize("ours", [MeshClient, AsyncMeshClient])
    def test_they_are_clients(self, ours: type) -> None:
        theirs = inspect.signature(ours.__mro__[1].send).parameters  # type: ignore[attr-defined]
        assert {"request", "stream"} <= theirs.keys()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_deadline_is_a_time_out(library: str) -> None:
    request = LIBRARIES[library].Request("GET", "http://orders/")
    error = foreign(DeadlineExceeded("late", service=ServiceUrl("orders")), request)
    assert isinstance(error, LIBRARIES[library].TimeoutException)
    assert isinstance(error, DeadlineExceeded)
    assert type(error) is type(foreign(DeadlineExceeded("again"), request)), "one class, however often"


def test_a_subclass_of_a_librarys_request_is_known() -> None:
    class Mine(httpx2.Request):
        pass

    assert isinstance(foreign(CallError("x"), Mine("GET", "http://orders/")), httpx2.TransportError)
