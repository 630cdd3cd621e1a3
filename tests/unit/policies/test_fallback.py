"""Fallback: what it stands for, what it gives, and of which type that has to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import httpx
import httpx2
import pytest

from meshlib import (
    AttemptTimeout,
    BulkheadFull,
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    Mesh,
    NoInstances,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    Settings,
    bulkhead,
    fallback,
    get,
    retry,
    service_client,
    timeout,
)
from meshlib.client.stack import in_order
from meshlib.events import Event, Events
from meshlib.flow import Given, send
from meshlib.policies.base import Site
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import SHELLS, Answer, Script, call_to


class Scene:
    """Calls under one fallback."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.clock, self.events, self.seen = FakeClock(), Events(), list[Event]()
        self.events.listen(self.seen.append)
        site = Site(service="orders", method="Orders.fetch", clock=self.clock, events=self.events)
        self.layer: Any = fallback(*args, **options).bind(site)

    def play(self, *script: Any, **call: Any) -> Any:
        played = play([self.layer], script, call=call_to(**call), clock=self.clock)
        if played.error is not None:
            raise played.error
        result = played.result
        if isinstance(result, Given):
            return result.value
        return result.read().decode() if isinstance(result, httpx2.Response) and result.is_success else result.status_code

    def kinds(self) -> list[str]:
        return [event.kind for event in self.seen]


def answer(text: str = "", status: int = 200, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, text=text, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    "outcome",
    [NoInstances("nobody"), ConnectFailed("refused"), AttemptTimeout("slow"), DeadlineExceeded("late"), BulkheadFull("full"),
     RateLimited("too many", retry_after=1.0), Reply(500), Reply(503), Reply(503, {"retry-after": "1"}), Reply(429)],
    ids=repr,
)  # fmt: skip
def test_what_it_stands_for(outcome: Any) -> None:
    scene = Scene(list)
    assert scene.play(outcome) == []
    assert scene.kinds() == ["fallback.used"]
    assert scene.seen[0].detail["source"] == "function"


@pytest.mark.parametrize("outcome", [Reply(200), Reply(204), Reply(302), Reply(404), Reply(409)], ids=repr)
def test_answers_are_answers(outcome: Reply) -> None:
    scene = Scene(list)
    assert scene.play(outcome) == outcome.status
    assert not outcome.closed
    assert scene.kinds() == []


@pytest.mark.parametrize("problem", [ConfigError("x", "is wrong"), NotFound("404", status=404), KeyboardInterrupt(), OSError()])
def test_what_it_does_not_stand_for(problem: BaseException) -> None:
    with pytest.raises(type(problem)):
        Scene(list).play(problem)


def test_an_answer_that_is_replaced_is_closed() -> None:
    failed = Reply(500)
    assert Scene(list).play(failed) == []
    assert failed.closed


@pytest.mark.parametrize(
    ("on", "outcome", "covered"),
    [
        (NoInstances, NoInstances("nobody"), True), (NoInstances, ConnectFailed("refused"), False),
        ([OSError, 503], OSError(), True), ([OSError, 503], Reply(503), True), ([OSError, 503], Reply(500), False),
        (404, Reply(404), True), (404, Reply(500), False), (NotFound, Reply(404), True), (NotFound, Reply(400), False),
        (ServiceUnavailable, Reply(503), True), ([404], NotFound("404", status=404), True),
    ],
)  # fmt: skip
def test_on(on: Any, outcome: Any, covered: bool) -> None:
    scene = Scene(value="instead", on=on)
    if covered:
        assert scene.play(outcome) == "instead"
    elif isinstance(outcome, Reply):
        assert scene.play(outcome) == outcome.status
    else:
        with pytest.raises(type(outcome)):
            scene.play(outcome)


def test_the_function_gets_what_it_names() -> None:
    arguments = {"order": 7, "page": 2}
    assert Scene(lambda: "no more").play(NoInstances("x"), arguments=arguments) == "no more"
    assert Scene(lambda order: f"order {order}").play(NoInstances("x"), arguments=arguments) == "order 7"
    assert Scene(lambda error, *, page: (str(error), page)).play(NoInstances("x"), arguments=arguments) == ("x", 2)
    assert Scene(lambda error=None, other=1: (str(error), other)).play(Reply(503)) == ("GET orders/ answered 503", 1)
    with pytest.raises(ConfigError, match="wants 'order', which the call has not"):
        Scene(lambda order: order).play(NoInstances("x"))


def test_of_an_answer_the_error_is_its_status() -> None:
    error = Scene(lambda error: error).play(Reply(503, {"retry-after": "7"}), path=b"/orders/7?secret=1")
    assert isinstance(error, ServiceUnavailable)
    assert (error.status, error.retry_after, str(error)) == (503, 7.0, "GET orders/orders/7 answered 503")


def test_when_the_function_fails_both_errors_are_seen() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    scene = Scene(broken)
    with pytest.raises(ZeroDivisionError) as caught:
        scene.play(NoInstances("nobody"))
    assert isinstance(caught.value.__cause__, NoInstances)
    assert scene.kinds() == ["fallback.failed"]
    assert scene.seen[0].detail == {"why": "ZeroDivisionError()", "of": "NoInstances('nobody')"}
    with pytest.raises(ZeroDivisionError) as caught:
        scene.play(Reply(500))
    assert "answered 500" in str(caught.value.__cause__)


def test_a_function_may_raise_another_error_from_it() -> None:
    def better(error: Exception) -> None:
        raise LookupError("no orders") from error

    with pytest.raises(LookupError) as caught:
        Scene(better).play(NoInstances("nobody"))
    assert str(caught.value.__cause__) == "nobody"


def test_a_value_is_a_copy_that_nobody_shares() -> None:
    scene = Scene(value={"items": []})
    scene.play(NoInstances("x"))["items"].append(1)
    assert scene.play(NoInstances("x")) == {"items": []}
    assert Scene(value=None).play(NoInstances("x")) is None


# -- the last good answer


def test_the_last_good_answer_until_it_is_too_old() -> None:
    scene = Scene(last_good=60.0)
    with pytest.raises(NoInstances):
        scene.play(NoInstances("x"))
    assert scene.play(answer("one")) == "one"
    scene.clock.advance(59.0)
    assert scene.play(NoInstances("x")) == "one"
    assert scene.play(answer(status=500)) == "one"
    assert scene.seen[0].detail["age"] == 59.0
    scene.clock.advance(1.0)
    with pytest.raises(NoInstances):
        scene.play(NoInstances("x"))
    assert scene.play(Reply(500)) == 500, "there is nothing instead: the answer is the caller's"


def test_the_last_good_answer_comes_before_the_value() -> None:
    scene = Scene(value="a value", last_good=60.0)
    assert scene.play(NoInstances("x")) == "a value"
    assert scene.play(answer("one")) == "one"
    assert scene.play(NoInstances("x")) == "one"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {}, True), ({"path": b"/a"}, {"path": b"/b"}, False),
        ({"headers": [(b"Authorization", b"a")]}, {"headers": [(b"Authorization", b"b")]}, False),
        ({"headers": [(b"X-User", b"a")]}, {}, False), ({"headers": [(b"X-Request-Id", b"a")]}, {}, True),
        ({"method": "POST"}, {"method": "POST"}, False), ({"method": "HEAD"}, {"method": "GET"}, False),
    ],
)  # fmt: skip
def test_of_the_same_call_only(first: Any, second: Any, same: bool) -> None:
    scene = Scene(value="other", last_good=60.0)
    scene.play(answer("one"), **first)
    assert scene.play(NoInstances("x"), **second) == ("one" if same else "other")


@pytest.mark.parametrize(
    "kept", [{"cache_control": "no-store"}, {"cache_control": "private"}, {"cache_control": "max-age=9, must-revalidate"},
             {"set_cookie": "a=b"}, {"vary": "*"}, {"vary": "X-Request-Id"}],
)  # fmt: skip
def test_answers_that_are_not_to_be_kept(kept: dict[str, str]) -> None:
    scene = Scene(value="other", last_good=60.0)
    scene.play(answer("one", **kept))
    assert scene.play(NoInstances("x")) == "other"


def test_bounds_of_what_is_kept() -> None:
    scene = Scene(value="other", last_good=60.0, keys=2, max_bytes=10)
    for path in (b"/1", b"/2", b"/3"):
        scene.play(answer("kept"), path=path)
    assert [scene.play(NoInstances("x"), path=path) for path in (b"/1", b"/2", b"/3")] == ["other", "kept", "kept"]
    scene.play(answer("far too long for it"), path=b"/3")
    assert scene.play(NoInstances("x"), path=b"/3") == "kept", "the one before is still the last that could be kept"


def test_a_key_of_ones_own() -> None:
    scene = Scene(value="other", last_good=60.0, key=lambda call: call.path[:2])
    scene.play(answer("one"), method="POST", path=b"/1/2")
    assert scene.play(NoInstances("x"), method="POST", path=b"/1/3") == "one"
    assert scene.play(NoInstances("x"), method="POST", path=b"/2") == "other"


# -- functions


def test_functions() -> None:
    outcomes: list[Any] = [1, OSError("down"), NotFound("no", status=404), ConfigError("x", "wrong")]

    @fallback(lambda error, key: f"{key}: {error}")
    def read(key: str) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert [read("a"), read("b")] == [1, "b: down"]
    for kind in (NotFound, ConfigError):
        with pytest.raises(kind):
            read("c")


def test_the_last_good_answer_of_a_function_is_by_its_arguments() -> None:
    fails = False

    @fallback(last_good=60.0)
    def read(key: str, *, page: int = 1) -> object:
        if fails:
            raise OSError
        return f"{key}{page}"

    read("a"), read("a", page=2)
    fails = True
    assert (read("a"), read(key="a", page=2)) == ("a1", "a2")
    with pytest.raises(OSError, match=r"^$"):
        read("b")


def test_coroutines_and_async_fallbacks() -> None:
    async def instead(error: Exception) -> str:
        await asyncio.sleep(0)
        return f"instead of {error}"

    @fallback(instead)
    async def read() -> str:
        raise OSError("down")

    assert asyncio.run(read()) == "instead of down"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="instead is async def, but .*blocking blocks"):

        @fallback(instead)
        def blocking() -> None: ...


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_found_to_be_async_only_when_it_is_asked(shell: str) -> None:
    async def instead() -> int:
        return 1

    layer = fallback(lambda: instead()).bind(Site())
    proceed: Any = lambda call: layer(call, lambda inner: (yield from _failing(inner)))  # noqa: E731
    if shell == "run":
        with pytest.raises(ConfigError, match="is an async function, and the call is a blocking one") as caught:
            SHELLS[shell](proceed, call_to(), Script())
        assert isinstance(caught.value.__cause__, NoInstances)
    else:
        assert SHELLS[shell](proceed, call_to(), Script()).value == 1


def _failing(_call: Any) -> Any:
    raise NoInstances("nobody")
    yield


def test_generators() -> None:
    gate = bulkhead(1)

    @fallback(lambda: iter([7, 8]))
    @gate
    def numbers(upto: int) -> Iterator[int]:
        yield from range(upto)

    first = numbers(3)
    assert next(first) == 0
    assert list(numbers(3)) == [7, 8]
    assert list(first) == [1, 2]
    assert list(numbers(2)) == [0, 1]

    @fallback(value=[7, 8])
    @bulkhead(1)
    async def anumbers(upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number

    async def main() -> None:
        first = anumbers(2)
        assert await anext(first) == 0
        assert [item async for item in anumbers(3)] == [7, 8]
        assert [item async for item in first] == [1]

    asyncio.run(main())
    with pytest.raises(ConfigError, match="is a generator, of which there is no answer to keep"):

        @fallback(last_good=1.0)
        def kept() -> Iterator[int]:
            yield 1


def test_above_everything_that_refuses() -> None:
    order = in_order([retry(), timeout(1.0), fallback(list), bulkhead(1)])
    assert [each.kind for each in order] == ["fallback", "timeout", "retry", "bulkhead"]

    @fallback(value="busy")
    @bulkhead(1)
    def deep(again: bool) -> str:
        return deep(False) if again else "done"

    assert (deep(False), deep(True)) == ("done", "busy")


@pytest.mark.parametrize("shell", SHELLS)
def test_everything_is_released(shell: str) -> None:
    layers = [fallback(list).bind(Site()), place := bulkhead(1).bind(Site())]
    permits: Any = place
    for outcome in (Answer(500), OSError, Answer(200)):
        proceed: Any = lambda call: layers[0](call, lambda inner: layers[1](inner, _sent))  # noqa: E731
        if outcome is OSError:
            with pytest.raises(OSError, match=r"^$"):
                SHELLS[shell](proceed, call_to(), Script(outcome))
        else:
            result = SHELLS[shell](proceed, call_to(), Script(outcome))
            if isinstance(result, Answer):
                result.close()
        assert permits.permits.free == 1, outcome


def _sent(call: Any) -> Any:
    return send(call)


# -- declared methods, and clients

DOWN = Settings(registry="static://orders=127.0.0.1:1")


def refusing(_: Any) -> httpx2.MockTransport:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    return httpx2.MockTransport(handler)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh(DOWN, transport=refusing, async_transport=refusing) as made:
        yield made


class Order(dict[str, Any]):
    pass


@fallback(value="of the client")
@service_client("orders")
class Orders(Protocol):
    @fallback(list)
    @get("/a")
    def all(self) -> list[int]: ...
    @fallback(lambda number, error: f"{number}: {type(error).__name__}")
    @get("/{number}")
    async def one(self, number: int) -> str: ...
    @get("/text")
    def text(self) -> str: ...
    @get("/number")
    def number(self) -> int: ...
    @fallback(value=[1])
    @get("/raw")
    def raw(self) -> httpx2.Response: ...
    @fallback(value=b"old")
    @get("/old")
    def old(self) -> httpx.Response: ...
    @fallback(lambda: httpx2.Response(203, text="made"))
    @get("/made")
    def made(self) -> httpx2.Response: ...
    @fallback(value=[b"a", b"b"])
    @get("/stream")
    def stream(self) -> Iterator[bytes]: ...
    @fallback(value=["a", "b"])
    @get("/lines")
    def lines(self) -> AsyncIterator[str]: ...
    @fallback(lambda: b"ab")
    @get("/bytes")
    def wrong(self) -> Iterator[bytes]: ...
    @fallback(value=object())
    @get("/object")
    def thing(self) -> httpx2.Response: ...


def test_declared_methods(mesh: Mesh) -> None:
    orders = mesh.client(Orders)
    assert orders.all() == []
    assert orders.text() == "of the client"
    assert asyncio.run(orders.one(7)) == "7: ConnectFailed"  # type: ignore[arg-type]
    assert list(orders.stream()) == [b"a", b"b"]

    async def lines() -> list[str]:
        return [line async for line in orders.lines()]

    assert asyncio.run(lines()) == ["a", "b"]


def test_raw_responses(mesh: Mesh) -> None:
    orders = mesh.client(Orders)
    raw, old, made = orders.raw(), orders.old(), orders.made()
    assert (raw.status_code, raw.json(), raw.request.method) == (200, [1], "GET")
    assert isinstance(old, httpx.Response)
    assert old.content == b"old"
    assert raw.elapsed.total_seconds() >= 0
    assert (made.status_code, made.text) == (203, "made")


@pytest.mark.parametrize(
    ("name", "said"),
    [("number", "fallback of Orders.number (from code): gave a str, not a <class 'int'>"), ("wrong", "gave a bytes, not a"),
     ("thing", "a object is no answer")],
)  # fmt: skip
def test_a_value_of_another_type_is_a_mistake(mesh: Mesh, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        result = getattr(mesh.client(Orders), name)()
        list(result)
    assert said in str(caught.value)


def test_what_a_declared_method_has_not_is_a_mistake_at_once(mesh: Mesh) -> None:
    @service_client("orders")
    class Wrong(Protocol):
        @fallback(lambda customer: customer)
        @get("/{id}")
        def one(self, id: int) -> str: ...

    with pytest.raises(ConfigError, match=r"<lambda> wants 'customer', and .*one has no such argument"):
        mesh.client(Wrong)


def test_clients_of_httpx2(mesh: Mesh) -> None:
    with mesh.http("orders", policies=[fallback(value={"id": 1})]) as http:
        answer = http.get("/orders/7")
        assert (answer.status_code, answer.json()) == (200, {"id": 1})
        with http.stream("GET", "/orders/7") as streamed:
            assert b"".join(streamed.iter_bytes()) == b'{"id":1}'
    with mesh.http("orders", policies=[fallback(value="text")]) as http:
        assert http.get("/").text == "text"
    with httpx.Client(transport=mesh.transport("orders", policies=[fallback(value=b"bytes")])) as old:  # type: ignore[arg-type]
        assert old.get("http://orders/").content == b"bytes"

    async def main() -> None:
        async with mesh.ahttp("orders", policies=[fallback(lambda: httpx.Response(418, json=1))]) as http:
            answer = await http.get("/")
            assert (answer.status_code, answer.json()) == (418, 1)

    asyncio.run(main())
    with (
        mesh.http("orders", policies=[fallback(lambda: httpx2.Response(200, stream=httpx2.ByteStream(b"")))]) as http,
        pytest.raises(ConfigError, match="is not in memory"),
    ):
        http.get("/")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fallback(), "fallback(make=) (from code): there is nothing to fall back on; for example fallback(list)"),
        (lambda: fallback([1]), "[1] is not a function; for example fallback(value=[1])"),  # type: ignore[arg-type]
        (lambda: fallback(list, value=1), "only one can hold"),
        (lambda: fallback(last_good=0), "0 is not a number of seconds"),
        (lambda: fallback(last_good=True), "True is not a number of seconds"),
        (lambda: fallback(list, on="x"), "'x' is neither a type of exceptions nor an error status"),
        (lambda: fallback(list, on=[200]), "200 is neither"),
        (lambda: fallback(list, on=[KeyboardInterrupt]), "is neither"),
        (lambda: fallback(last_good=1.0, keys=0), "0 is not a number from 1"),
        (lambda: fallback(last_good=1.0, key=3), "3 is not a function of a call"),  # type: ignore[arg-type]
    ],
)
def test_bad_options(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


def test_policies_compare_and_are_keys() -> None:
    assert fallback(value=[]) == fallback(value=[])
    assert fallback(value=[]) != fallback(value=[1])
    assert len({fallback(value=[]), fallback(value=[]), fallback(list)}) == 2
