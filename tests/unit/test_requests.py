"""A mesh's own clients make the requests that the engine's would make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshlib.mounts import AsyncMeshClient, MeshClient
from meshlib.requests import BODILESS, Below
from meshlib.transport import BUFFER

BASES = ("http://orders", "http://orders/", "http://orders/api", "http://orders:8080/api/", "https://u:p@orders/v%201/")
PATHS = st.text(st.sampled_from("/abZ09.-_~!$&'()*+,;=:@?#%20 é[]\\\"<>{}|^`"), max_size=30).map(lambda text: f"/{text}")


def silent(_request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200)


def clients(**options: Any) -> tuple[MeshClient, httpx2.Client]:
    made = {"transport": httpx2.MockTransport(silent), "trust_env": False, **options}
    return MeshClient(**made), httpx2.Client(**made)


def parts(request: httpx2.Request) -> tuple[Any, ...]:
    url = request.url
    extensions = {key: value for key, value in request.extensions.items() if key != BUFFER}  # MeshClient.send() adds it
    return (request.method, str(url), url.raw_path, url.path, url.query, url.fragment, url.host, url.port, url.userinfo, url,
            hash(url), request.headers.raw, extensions, request.content, type(request.stream))  # fmt: skip


def outcome(build: Callable[[], httpx2.Request]) -> Any:
    try:
        return parts(build())
    except httpx2.InvalidURL as wrong:
        return str(wrong)


@settings(max_examples=600)
@given(st.sampled_from(BASES), PATHS, st.sampled_from(["GET", "DELETE", "POST", "get"]))
@example("http://orders", "/a/../b", "GET")
@example("http://orders", "/a/./b?x=1&y=", "GET")
@example("http://orders", "/a?", "GET")
@example("http://orders", "/.hidden/x", "GET")
@example("http://orders", "/" + "a" * 5000, "GET")
def test_the_request_is_that_of_the_engine(base: str, path: str, method: str) -> None:
    ours, engine = clients(base_url=base)
    for _ in range(2):  # the second time it is made of what is remembered
        assert outcome(lambda: sent_as(ours, method, path)) == outcome(lambda: sent_as(engine, method, path))


def sent_as(client: httpx2.Client, method: str, path: str, **options: Any) -> httpx2.Request:
    """As ``client.request()`` builds it, which says all options."""
    return client.request(method, path, **options).request


@pytest.mark.parametrize(
    "options",
    [{"params": {"a": "1"}}, {"headers": {"X-A": "1"}}, {"headers": {"Host": "other"}}, {"timeout": 3.0},
     {"extensions": {"x": 1}}, {"timeout": None}],
)  # fmt: skip
def test_whatever_else_is_asked_for(options: dict[str, Any]) -> None:
    ours, engine = clients(base_url="http://orders")
    assert parts(sent_as(ours, "GET", "/a", **options)) == parts(sent_as(engine, "GET", "/a", **options))


@pytest.mark.parametrize(
    "of_the_client",
    [{"params": {"a": "1"}}, {"headers": {"X-A": "1"}}, {"headers": {"host": "other"}}, {"cookies": {"a": "1"}},
     {"timeout": 3.0}],
)  # fmt: skip
def test_what_the_client_always_says(of_the_client: dict[str, Any]) -> None:
    ours, engine = clients(base_url="http://orders", **of_the_client)
    assert parts(sent_as(ours, "GET", "/a")) == parts(sent_as(engine, "GET", "/a"))


def test_a_client_that_is_changed() -> None:
    ours, engine = clients(base_url="http://orders")

    def same() -> None:
        assert parts(sent_as(ours, "GET", "/a")) == parts(sent_as(engine, "GET", "/a"))

    same()
    for client in (ours, engine):
        client.headers["X-Tenant"] = "acme"
    same()
    for client in (ours, engine):
        client.base_url = "http://stock/v2"
    same()
    for client in (ours, engine):
        client.cookies.set("session", "1")
    same()
    for client in (ours, engine):
        client.timeout = 1.0
    same()


def test_nothing_of_a_request_is_shared_with_the_next() -> None:
    ours, _ = clients(base_url="http://orders")
    first = sent_as(ours, "GET", "/a")
    first.headers["X-A"] = "1"
    first.extensions["timeout"]["read"] = 99.0
    second = sent_as(ours, "GET", "/a")
    assert "X-A" not in second.headers
    assert second.extensions["timeout"]["read"] == 5.0


@pytest.mark.parametrize("url", ["http://other/a", "//other/a", "a/b", httpx2.URL("http://other/a"), httpx2.URL("/a")])
def test_what_is_no_path(url: Any) -> None:
    ours, engine = clients(base_url="http://orders/api")
    assert parts(sent_as(ours, "GET", url)) == parts(sent_as(engine, "GET", url))


def test_the_short_way_is_taken() -> None:
    """Else the tests above compare the engine with itself."""
    ours = MeshClient(base_url="http://orders", trust_env=False)
    assert type(ours._requests.join("/orders/7?a=1")) is Below
    assert type(ours._requests.join("/orders/%37")) is str
    said: dict[str, Any] = {}
    ours.build_request = lambda method, url, **options: said.update(options) or httpx2.Request(method, url)  # type: ignore[method-assign, func-returns-value]
    ours._requests.plain("GET", Below("http://orders/"), said)
    with pytest.raises(httpx2.HTTPError):
        ours.get("http://127.0.0.1:1/")
    assert ours._requests.plain("GET", ours._requests.join("/a"), said) is not None
    assert ours._requests.plain("POST", ours._requests.join("/a"), said) is None
    assert {"GET", "HEAD"} <= BODILESS


async def _async_request(path: str) -> httpx2.Request:
    async with AsyncMeshClient(base_url="http://orders", transport=httpx2.MockTransport(silent), trust_env=False) as client:
        return (await client.get(path)).request


def test_async_clients() -> None:
    import asyncio

    _, engine = clients(base_url="http://orders")
    assert parts(asyncio.run(_async_request("/a?b=1"))) == parts(sent_as(engine, "GET", "/a?b=1"))
