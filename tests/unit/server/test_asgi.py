"""ASGI under the provider's layers: what is held, what streams, what goes through untouched."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from meshlib import ConfigError, RateLimited, bulkhead, deadline, rate_limit, retry, timeout
from meshlib.flow import Call
from meshlib.policies.base import Policy
from meshlib.server import governed_asgi
from meshlib.server.govern_asgi import call_of
from tests.unit.server.serving import ORDERS, ask, asked, layer_of, scope, stack


async def tea(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
    await send({"type": "http.response.body", "body": b"tea"})


def places(provider: Any) -> int:
    free: int = layer_of(provider, "bulkhead").permits.free
    return free


class TestPlaces:
    """A place of the bulkhead is held until the answer is complete."""

    def test_a_stream_is_not_buffered_and_holds_its_place_to_the_end(self) -> None:
        provider, sent, seen = stack(bulkhead(1)), list[Any](), list[Any]()

        async def streaming(_scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})
            for part in (b"a", b"b"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
                seen.append((len(sent), places(provider)))
            await send({"type": "http.response.body", "body": b""})

        asyncio.run(ask(governed_asgi(streaming, provider), scope(), sent))
        assert seen == [(2, 0), (3, 0)], "each part has gone out when the next is made"
        assert places(provider) == 1

    def test_the_second_at_once_is_refused(self) -> None:
        provider = stack(bulkhead(1))

        async def nested(_scope: Any, _receive: Any, send: Any) -> None:
            refused.extend(await ask(app, scope()))
            await tea(_scope, _receive, send)

        refused: list[Any] = []
        app = governed_asgi(nested, provider)
        assert asked(app, scope())[0] == 200
        assert refused[0]["status"] == 503
        assert (b"retry-after", b"1") in refused[0]["headers"]
        assert json.loads(refused[1]["body"])["detail"] == "as many requests as are allowed are being served"

    @pytest.mark.parametrize("begun", [True, False])
    def test_errors_of_the_app_go_on_as_they_are(self, begun: bool) -> None:
        provider = stack(bulkhead(1))

        async def failing(_scope: Any, _receive: Any, send: Any) -> None:
            if begun:
                await send({"type": "http.response.start", "status": 200})
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            asyncio.run(ask(governed_asgi(failing, provider), scope()))
        assert places(provider) == 1

    def test_a_refusal_that_the_app_met_elsewhere_is_an_error_of_the_app(self) -> None:
        async def refused(*_: Any) -> None:
            raise RateLimited("of somebody else")

        with pytest.raises(RateLimited):
            asyncio.run(ask(governed_asgi(refused, stack(bulkhead(1))), scope()))

    def test_a_client_that_goes_away_as_the_app_hears(self) -> None:
        provider = stack(bulkhead(1))

        async def gone() -> Any:
            return {"type": "http.disconnect"}

        async def listening(_scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})
            assert (await receive())["type"] == "http.disconnect"

        asyncio.run(ask(governed_asgi(listening, provider), scope(), receive=gone))
        assert places(provider) == 1

    def test_a_request_that_the_server_cancels(self) -> None:
        provider = stack(bulkhead(1))

        async def main() -> None:
            begun = asyncio.Event()

            async def hanging(*_: Any) -> None:
                begun.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(ask(governed_asgi(hanging, provider), scope()))  # type: ignore[arg-type]
            await begun.wait()
            assert places(provider) == 0
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert places(provider) == 1

    def test_one_that_is_cancelled_while_it_waits(self) -> None:
        provider = stack(bulkhead(1, wait=60.0))

        async def main() -> None:
            begun, end = asyncio.Event(), asyncio.Event()

            async def hanging(_scope: Any, _receive: Any, send: Any) -> None:
                begun.set()
                await end.wait()
                await tea(_scope, _receive, send)

            app = governed_asgi(hanging, provider)
            first = asyncio.create_task(ask(app, scope()))
            await begun.wait()
            second = asyncio.create_task(ask(app, scope()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            end.set()
            assert (await first)[0]["status"] == 200

        asyncio.run(main())
        assert places(provider) == 1
        assert not layer_of(provider, "bulkhead").permits._waiters


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_what_is_no_request_passes_untouched(kind: str) -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.append(given)

    given = ({"type": kind}, object(), object())
    provider = stack(rate_limit("1/h"))
    for _ in range(3):
        asyncio.run(governed_asgi(app, provider)(*given))  # type: ignore[arg-type]
    assert all(each[1] is given[1] and each[2] is given[2] for each in seen)
    assert len(seen) == 3


class TestLimits:
    def test_answers_say_how_the_limit_stands(self) -> None:
        app = governed_asgi(tea, stack(rate_limit("2/h")))
        status, headers, body = asked(app, scope())
        assert (status, body) == (200, b"tea")
        assert headers["x-app"] == "1"
        assert headers["ratelimit-policy"] == '"2/3600s";q=2;w=3600'
        assert headers["ratelimit"].startswith('"2/3600s";r=1;t=')

    def test_a_refusal_is_a_problem_document(self) -> None:
        app = governed_asgi(tea, stack(rate_limit("1/h")))
        asked(app, scope())
        status, headers, body = asked(app, scope())
        assert (status, headers["content-type"]) == (429, "application/problem+json")
        assert 3000 < int(headers["retry-after"]) <= 3600
        assert headers["ratelimit"].startswith('"1/3600s";r=0;t=')
        assert json.loads(body) == {
            "type": "about:blank", "title": "Too Many Requests", "status": 429,
            "detail": "as many requests as are allowed have been made",
        }  # fmt: skip
        assert len(body) == int(headers["content-length"])

    def test_head_has_no_body(self) -> None:
        app = governed_asgi(tea, stack(rate_limit("1/h")))
        asked(app, scope())
        status, headers, body = asked(app, scope(method="HEAD"))
        assert (status, body) == (429, b"")
        assert int(headers["content-length"]) > 0


class TestDeadlines:
    LATE = ((b"x-mesh-deadline", b"0"),)

    def test_what_is_too_late_counts_and_is_not_begun(self) -> None:
        """The limits stand above the deadline: whoever comes too late again and again is limited, too."""
        app = governed_asgi(tea, stack(rate_limit("1/h")))
        assert asked(app, scope(headers=self.LATE))[0] == 504
        assert asked(app, scope(headers=self.LATE))[0] == 429

    def test_the_earlier_of_the_requests_own_and_the_providers(self) -> None:
        seen: list[float] = []

        async def noting(_scope: Any, _receive: Any, send: Any) -> None:
            seen.append(deadline.time_left() or 0.0)
            await tea(_scope, _receive, send)

        app = governed_asgi(noting, stack(timeout(200.0)))
        for left in (b"90000", b"900000"):
            asked(app, scope(headers=[(b"x-mesh-deadline", left)]))
        assert 80.0 < seen[0] <= 90.0
        assert 190.0 < seen[1] <= 200.0
        assert deadline.time_left() is None


class TestCalls:
    """How layers see a request."""

    @pytest.mark.parametrize(
        ("given", "path"),
        [
            (scope("/orders/7?a=1&b=%20"), b"/orders/7?a=1&b=%20"),
            (scope("/a b/%2F", raw_path=b"/a%20b/%252F"), b"/a%20b/%252F"),
            (scope("/a b/ü", raw_path=None), b"/a%20b/%C3%BC"),
            (scope("", raw_path=b""), b""),
        ],
    )
    def test_the_path(self, given: Any, path: bytes) -> None:
        assert call_of(given, ORDERS, None).path == path

    def test_the_rest(self) -> None:
        call = call_of(scope(method="POST", headers=[(b"x-mesh-caller", b"shop")]), ORDERS, 7.0)
        assert (call.target, call.method, call.deadline, call.replayable) == (ORDERS, "POST", 7.0, False)
        assert call.headers == [(b"x-mesh-caller", b"shop")]

    def test_a_policy_that_asks_twice(self) -> None:
        class Twice(Policy):
            kind = "twice"

            def bind(self, site: Any) -> Any:
                def layer(call: Call, proceed: Any) -> Any:
                    yield from proceed(call)
                    return (yield from proceed(call))

                return layer

        with pytest.raises(ConfigError, match="asked twice"):
            asyncio.run(ask(governed_asgi(tea, stack(Twice())), scope()))

    def test_a_policy_of_consumers(self) -> None:
        with pytest.raises(ConfigError, match="retry cannot stand on a provider"):
            stack(retry())
