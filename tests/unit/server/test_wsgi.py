"""WSGI under the provider's layers: PEP 3333 to the letter, checked by wsgiref's validator on both sides."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from meshlib import BulkheadFull, bulkhead, deadline, rate_limit, timeout
from meshlib.server import InFlight, governed_wsgi, wsgi
from meshlib.server.govern_wsgi import call_of
from tests.unit.server.serving import ORDERS, Started, environ, layer_of, stack


def tea(_environ: Any, start: Any) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"tea"]


class Parts:
    """A body that is made while it is read; ``log`` says what happened."""

    def __init__(self, log: list[str], *, fails: bool = False) -> None:
        self._log, self._fails, self._number = log, fails, 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._number == 3:
            raise StopIteration
        self._number += 1
        self._log.append(f"made {self._number}")
        if self._fails:
            raise ZeroDivisionError
        return b"%d" % self._number

    def close(self) -> None:
        self._log.append("closed")


def places(provider: Any) -> int:
    free: int = layer_of(provider, "bulkhead").permits.free
    return free


class TestPlaces:
    def test_a_place_is_held_until_the_body_is_closed(self) -> None:
        provider, log = stack(bulkhead(1)), list[str]()

        def app(_environ: Any, start: Any) -> Any:
            start("200 OK", [])
            return Parts(log)

        body: Any = governed_wsgi(app, provider)(environ(), Started())
        assert log == ["made 1"], "the first, for only then the status is certain, and no more"
        parts = iter(body)
        assert [next(parts), next(parts)] == [b"1", b"2"]
        assert log == ["made 1", "made 2"]
        assert places(provider) == 0
        body.close()  # early: the client has gone
        body.close()
        assert log == ["made 1", "made 2", "closed", "closed"]
        assert places(provider) == 1

    def test_a_generator_that_is_closed_early(self) -> None:
        provider, log = stack(bulkhead(1)), list[str]()

        def app(_environ: Any, start: Any) -> Iterator[bytes]:
            start("200 OK", [])
            try:
                yield b"a"
                yield b"b"
            finally:
                log.append(f"ended with {places(provider)} free")

        body: Any = governed_wsgi(app, provider)(environ(), Started())
        assert next(iter(body)) == b"a"
        body.close()
        assert log == ["ended with 0 free"]
        assert places(provider) == 1

    @pytest.mark.parametrize("empty", [list, tuple, lambda: iter(())])
    def test_a_body_of_nothing(self, empty: Any) -> None:
        provider = stack(bulkhead(1))

        def app(_environ: Any, start: Any) -> Any:
            start("204 No Content", [])
            return empty()

        body: Any = governed_wsgi(app, provider)(environ(), Started())
        assert list(body) == []
        body.close()
        assert places(provider) == 1

    def test_an_app_that_fails_at_once(self) -> None:
        provider = stack(bulkhead(1))
        with pytest.raises(ZeroDivisionError):
            governed_wsgi(lambda *_: 1 / 0, provider)(environ(), Started())  # type: ignore[arg-type, return-value]
        assert places(provider) == 1

    def test_a_body_whose_first_part_fails_is_closed(self) -> None:
        provider, log = stack(bulkhead(1)), list[str]()
        with pytest.raises(ZeroDivisionError):
            governed_wsgi(lambda *_: Parts(log, fails=True), provider)(environ(), Started())
        assert log == ["made 1", "closed"]
        assert places(provider) == 1

    def test_a_body_whose_close_fails(self) -> None:
        class Failing(Parts):
            def close(self) -> None:
                raise OSError

        provider = stack(bulkhead(1))
        body: Any = governed_wsgi(lambda *_: Failing([]), provider)(environ(), Started())
        with pytest.raises(OSError):
            body.close()
        assert places(provider) == 1

    def test_a_refusal_that_the_app_met_elsewhere_is_an_error_of_the_app(self) -> None:
        def refused(*_: Any) -> Any:
            raise BulkheadFull("of somebody else")

        with pytest.raises(BulkheadFull):
            governed_wsgi(refused, stack(rate_limit("9/h")))(environ(), Started())


class TestStarting:
    def test_the_status_goes_out_at_once_and_what_is_written_too(self) -> None:
        started, seen = Started(), list[Any]()

        def app(_environ: Any, start: Any) -> list[bytes]:
            write = start("200 OK", [("X-App", "1")])
            seen.append(started.status)
            write(b"written")
            seen.append(list(started.written))
            return []

        governed_wsgi(app, stack(rate_limit("2/h")))(environ(), started)
        assert seen == ["200 OK", [b"written"]]
        assert started.headers["X-App"] == "1"
        assert started.headers["RateLimit-Policy"] == '"2/3600s";q=2;w=3600'

    def test_a_second_start_with_exc_info(self) -> None:
        started = Started()

        def app(_environ: Any, start: Any) -> list[bytes]:
            start("200 OK", [])
            try:
                raise ValueError
            except ValueError:
                start("500 Oops", [], sys.exc_info())
            return [b"oops"]

        governed_wsgi(app, stack(bulkhead(1)))(environ(), started)
        assert started.status == "500 Oops"
        assert started.rest[0][0] is ValueError

    def test_a_second_start_when_headers_are_out(self) -> None:
        """The server raises what it is given: it comes out as it is."""
        provider = stack(bulkhead(1))

        def app(_environ: Any, start: Any) -> Any:
            start("500 Oops", [], (ValueError, ValueError("late"), None))

        def server(_status: str, _headers: Any, exc_info: Any) -> Any:
            raise exc_info[1]

        with pytest.raises(ValueError, match="late"):
            governed_wsgi(app, provider)(environ(), server)
        assert places(provider) == 1


class TestRefusals:
    def test_a_problem_document(self) -> None:
        app, started = governed_wsgi(tea, stack(rate_limit("1/h"))), Started()
        list(app(environ(), started))
        assert started.headers["RateLimit"].startswith('"1/3600s";r=0;t=')
        document = json.loads(b"".join(app(environ(), started)))
        assert started.status == "429 Too Many Requests"
        assert started.headers["Content-Type"] == "application/problem+json"
        assert started.headers["RateLimit"].startswith('"1/3600s";r=0;t=')
        assert document["status"] == 429

    def test_head_has_no_body(self) -> None:
        app, started = governed_wsgi(tea, stack(rate_limit("1/h"))), Started()
        list(app(environ(), started))
        assert list(app(environ(method="HEAD"), started)) == []
        assert started.status == "429 Too Many Requests"

    def test_what_is_too_late_counts_and_is_not_begun(self) -> None:
        app, started = governed_wsgi(tea, stack(rate_limit("1/h"))), Started()
        for status in ("504 Gateway Timeout", "429 Too Many Requests"):
            body: Any = app(environ(HTTP_X_MESH_DEADLINE="0"), started)
            list(body)
            body.close()
            assert started.status == status

    def test_the_deadline_bounds_the_making_of_the_body(self) -> None:
        seen: list[float] = []

        def app(_environ: Any, start: Any) -> Iterator[bytes]:
            start("200 OK", [])
            for part in (b"a", b"b"):
                seen.append(deadline.time_left() or 0.0)
                yield part

        body: Any = governed_wsgi(app, stack(timeout(200.0)))(environ(HTTP_X_MESH_DEADLINE="90000"), Started())
        list(body)
        body.close()
        assert len(seen) == 2
        assert all(70.0 < left <= 90.0 for left in seen)
        assert deadline.time_left() is None


def test_how_layers_see_a_request() -> None:
    given = environ("/a b/ü?x=%20", "POST", SCRIPT_NAME="/shop", HTTP_X_MESH_CALLER="shop", CONTENT_TYPE="text/plain")
    given["PATH_INFO"] = given["PATH_INFO"].encode().decode("latin-1")  # as servers hand it over
    call = call_of(given, ORDERS, 7.0)
    assert (call.method, call.path, call.deadline) == ("POST", b"/shop/a%20b/%C3%BC?x=%20", 7.0)
    assert sorted(call.headers) == [(b"Content-Type", b"text/plain"), (b"X-MESH-CALLER", b"shop")]


@pytest.mark.parametrize("policies", [(), (rate_limit("1/h"), bulkhead(1))])
def test_the_validator(policies: Any) -> None:
    """Answered, refused and closed early; the validator watches the app's side and the server's."""

    def made(_environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        yield b"tea"
        yield b"pot"

    provider, flying = stack(*policies), InFlight()
    app = validator(wsgi(governed_wsgi(validator(made), provider), flying))  # type: ignore[arg-type]
    for early in (True, False):
        given: Any = {"wsgi.input": BytesIO(), "QUERY_STRING": ""}
        setup_testing_defaults(given)
        started = Started()
        body: Any = app(given, started)
        assert next(iter(body)) if early else b"".join(body)
        body.close()
        assert started.status == ("200 OK" if early or not policies else "429 Too Many Requests")
    assert len(flying) == 0
    assert not policies or places(provider) == 1
