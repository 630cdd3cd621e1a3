"""The cache: what is kept, for whom and how long; one fetch for all; old answers in place of errors."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import httpx2
import pytest

from meshlib import (
    BulkheadFull,
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    Mesh,
    NotFound,
    Settings,
    cache,
    fallback,
    get,
    keys,
    post,
    service_client,
    timeout,
)
from meshlib.client.stack import in_order
from meshlib.events import Event, Events
from meshlib.flow import Call, arun, compose
from meshlib.policies.base import Site
from meshlib.policies.cache import PATIENCE
from meshlib.policies.flights import Flights, Seat
from meshlib.subsets import Subset
from meshlib.testing import FakeClock, Reply, VirtualLoop, play
from tests.unit.flows import AsyncScript, Script, call_to


def answer(text: str = "", status: int = 200, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, text=text, headers={name.replace("_", "-"): value for name, value in headers.items()})


class Scene:
    """Calls under one cache."""

    def __init__(self, ttl: float = 10.0, **options: Any) -> None:
        self.clock, self.events, self.seen = FakeClock(), Events(), list[Event]()
        self.events.listen(self.seen.append)
        self.site = Site(service="orders", method="Orders.fetch", clock=self.clock, events=self.events)
        self.layer: Any = cache(ttl, **options).bind(self.site)

    def response(self, *script: Any, **call: Any) -> Any:
        played = play([self.layer], script, call=call_to(**call), clock=self.clock)
        if played.error is not None:
            raise played.error
        return played.result

    def play(self, *script: Any, **call: Any) -> Any:
        """The body (or the status) of the answer; a script that is not needed may be left out."""
        response = self.response(*script, **call)
        return response.read().decode() if isinstance(response, httpx2.Response) else response.status_code

    def kinds(self) -> list[str]:
        return [event.kind for event in self.seen]


def test_an_answer_is_kept_for_its_time() -> None:
    scene = Scene(10.0)
    assert scene.play(answer("one")) == "one"
    scene.clock.advance(9.5)
    again = scene.response()
    assert (again.read(), again.headers["age"], again.request.url) == (b"one", "9", "http://orders/")
    scene.clock.advance(0.5)
    assert scene.play(answer("two")) == "two"
    assert scene.kinds() == ["cache.miss", "cache.hit", "cache.miss"]


def test_everybody_gets_an_answer_of_his_own() -> None:
    scene = Scene()
    scene.play(answer("one"))
    first, second = scene.response(), scene.response()
    first.headers["x-changed"] = "1"
    assert first is not second
    assert "x-changed" not in second.headers


SAME: list[tuple[Any, Any, Any, bool]] = [
    ({}, {}, {}, True),
    ({}, {"path": b"/a"}, {"path": b"/b"}, False),
    ({}, {"path": b"/a?x=1"}, {"path": b"/a?x=2"}, False),
    ({}, {"method": "HEAD"}, {"method": "GET"}, False),
    ({}, {"subset": Subset(zone="a")}, {"subset": Subset(zone="b")}, False),
    ({}, {"headers": [(b"Accept", b"a")]}, {"headers": [(b"Accept", b"b")]}, False),
    ({}, {"headers": [(b"Accept", b"a"), (b"X", b"1")]}, {"headers": [(b"x", b"1"), (b"accept", b"a")]}, True),
    ({}, {"headers": [(b"Authorization", b"a")]}, {"headers": [(b"Authorization", b"b")]}, False),
    ({}, {"headers": [(b"Authorization", b"a")]}, {}, False),
    ({}, {"headers": [(b"X-Api-Key", b"a")]}, {"headers": [(b"X-Api-Key", b"b")]}, False),
    ({}, {"headers": [(b"traceparent", b"a")]}, {"headers": [(b"traceparent", b"b")]}, True),
    ({}, {"headers": [(b"a", b"bc")]}, {"headers": [(b"ab", b"c")]}, False),
    ({"headers": ["Accept"]}, {"headers": [(b"X", b"1")]}, {"headers": [(b"X", b"2")]}, True),
    ({"headers": ["Accept"]}, {"headers": [(b"Accept", b"1")]}, {}, False),
    ({"headers": ["Accept"]}, {"headers": [(b"Authorization", b"a")]}, {}, False),
    ({"headers": ["Accept"]}, {"headers": [(b"Cookie", b"a")]}, {}, False),
    ({"headers": ["Accept"], "shared": True}, {"headers": [(b"Authorization", b"a")]}, {}, True),
    ({"shared": True}, {"headers": [(b"X-Api-Key", b"a")]}, {"headers": [(b"X-Api-Key", b"b")]}, False),
    ({"key": keys.header("X")}, {"headers": [(b"X", b"1")], "path": b"/a"}, {"headers": [(b"X", b"1")]}, True),
    ({"key": keys.header("X")}, {"headers": [(b"X", b"1")]}, {"headers": [(b"X", b"2")]}, False),
    ({"key": keys.path()}, {"headers": [(b"Authorization", b"a")]}, {"headers": [(b"Authorization", b"b")]}, False),
    ({"key": keys.path(), "shared": True}, {"headers": [(b"Authorization", b"a")]}, {}, True),
    ({"key": keys.header("X")}, {}, {}, False),
    ({}, {"method": "POST"}, {"method": "POST"}, False),
    ({"methods": ["POST"]}, {"method": "POST"}, {"method": "POST"}, True),
    ({"methods": ["post"]}, {"method": "POST", "body": httpx2.ByteStream(b"a")},
     {"method": "POST", "body": httpx2.ByteStream(b"b")}, False),
    ({"methods": ["POST"]}, {"method": "POST", "body": iter([b"a"]), "replayable": False},
     {"method": "POST", "body": iter([b"a"]), "replayable": False}, False),
    ({}, {"headers": [(b"Range", b"bytes=0-9")]}, {"headers": [(b"Range", b"bytes=0-9")]}, False),
    ({}, {"headers": [(b"Cache-Control", b"no-store")]}, {}, False),
    ({}, {}, {"headers": [(b"Cache-Control", b"no-store")]}, False),
    ({}, {}, {"headers": [(b"Cache-Control", b"no-cache")]}, False),
    ({}, {}, {"headers": [(b"Cache-Control", b"max-age=0")]}, False),
    ({}, {"headers": [(b"Cache-Control", b"no-cache")]}, {}, True),
]  # fmt: skip


@pytest.mark.parametrize(("options", "first", "second", "same"), SAME)
def test_for_whom(options: Any, first: Any, second: Any, same: bool) -> None:
    scene = Scene(**options)
    assert scene.play(answer("one"), **first) == "one"
    assert scene.play(*([] if same else [answer("two")]), **second) == ("one" if same else "two")


@pytest.mark.parametrize(
    ("status", "headers", "kept"),
    [
        (200, {}, True), (203, {}, True), (204, {}, True), (206, {}, False), (301, {}, False), (404, {}, False),
        (200, {"cache_control": "public"}, True), (200, {"cache_control": "No-Store"}, False),
        (200, {"cache_control": "private, max-age=60"}, False), (200, {"cache_control": "no-cache"}, False),
        (200, {"cache_control": 'no-cache="set-cookie"'}, False), (200, {"cache_control": "max-age=0"}, False),
        (200, {"cache_control": "max-age=x"}, False), (200, {"cache_control": "max-age=5, s-maxage=0"}, False),
        (200, {"cache_control": "max-age=0, s-maxage=5"}, True), (200, {"cache_control": "max-age=5", "age": "5"}, False),
        (200, {"set_cookie": "session=1"}, False), (200, {"vary": "*"}, False), (200, {"vary": "Accept, X-Any"}, True),
        (200, {"vary": "traceparent"}, False), (200, {"expires": "0"}, True),
    ],
)  # fmt: skip
def test_what_is_kept(status: int, headers: dict[str, str], kept: bool) -> None:
    scene = Scene()
    scene.play(answer("one", status, **headers))
    assert scene.play(*([] if kept else [answer("two")])) == ("one" if kept else "two")


def test_an_answer_may_ask_for_less_time() -> None:
    scene = Scene(60.0)
    scene.play(answer("one", cache_control="max-age=30", age="10"))
    scene.clock.advance(19.0)
    again = scene.response()
    assert (again.read(), again.headers["age"]) == (b"one", "29"), "what the remote kept it for counts, too"
    scene.clock.advance(1.0)
    assert scene.play(answer("two", cache_control="max-age=3600")) == "two"
    scene.clock.advance(60.0)
    assert scene.play(answer("three")) == "three", "and not for more"


def test_vary_by_what_is_left_out_of_the_key() -> None:
    scene = Scene(headers=["Accept"])
    scene.play(answer("one", vary="Accept-Language"))
    assert scene.play(answer("two", vary="Accept")) == "two"
    assert scene.play() == "two"


def test_statuses_that_are_told() -> None:
    scene = Scene(statuses=[200, 404])
    scene.play(answer("nobody", 404))
    assert scene.play() == "nobody"


class Endless(httpx2.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"x"


def test_streams_and_large_bodies_are_not_kept() -> None:
    scene = Scene(max_bytes=3)
    stream = httpx2.Response(200, stream=Endless())
    assert scene.response(stream) is stream
    assert scene.play(answer("four")) == "four"
    assert scene.play(answer("two")) == "two"
    assert scene.play() == "two"


def test_bounds_of_number_and_of_bytes() -> None:
    scene = Scene(maxsize=2)
    for path in (b"/1", b"/2", b"/1", b"/3"):
        scene.play(answer("x"), path=path)
    assert [len(scene.layer.shelf), scene.play(path=b"/1"), scene.play(path=b"/3")] == [2, "x", "x"]
    assert scene.play(answer("again"), path=b"/2") == "again", "it was not asked for longest"
    scene = Scene(max_bytes=100)
    for number in range(200):
        scene.play(answer("x" * 90), path=b"/%d" % number)
    assert 30 < len(scene.layer.shelf) < 64
    scene.clock.advance(10.0)
    assert len(scene.layer.shelf) == 0


# -- errors


@pytest.mark.parametrize("outcome", [ConnectFailed("refused"), DeadlineExceeded("late"), BulkheadFull("full"), Reply(500),
                                     Reply(503), Reply(429)], ids=repr)  # fmt: skip
def test_an_old_answer_in_place_of_an_error(outcome: Any) -> None:
    scene = Scene(10.0, stale_if_error=20.0)
    scene.play(answer("one"))
    scene.clock.advance(29.0)
    stale = scene.response(outcome)
    assert (stale.read(), stale.headers["age"]) == (b"one", "29")
    if isinstance(outcome, Reply):
        assert outcome.closed
    assert scene.kinds() == ["cache.miss", "cache.miss", "cache.stale"]
    assert scene.seen[-1].detail["age"] == 29.0
    assert scene.play(answer("two")) == "two", "each call asks first"
    scene.clock.advance(30.0)
    if isinstance(outcome, Reply):
        assert scene.play(Reply(500)) == 500
    else:
        with pytest.raises(type(outcome)):
            scene.play(outcome)


@pytest.mark.parametrize(
    ("said", "after", "given"),
    [("stale-if-error=5", 14.0, True), ("stale-if-error=5", 16.0, False), ("stale-if-error=99", 31.0, False),
     ("must-revalidate", 11.0, False), ("proxy-revalidate", 11.0, False), ("max-age=2, stale-if-error=5", 6.0, True),
     ("max-age=2, stale-if-error=5", 8.0, False)],
)  # fmt: skip
def test_what_the_answer_says_of_errors(said: str, after: float, given: bool) -> None:
    scene = Scene(10.0, stale_if_error=20.0)
    scene.play(answer("one", cache_control=said))
    scene.clock.advance(after)
    assert scene.play(Reply(500)) == ("one" if given else 500)


def test_without_it_errors_are_errors() -> None:
    scene = Scene(10.0)
    scene.play(answer("one"))
    scene.clock.advance(11.0)
    assert scene.play(Reply(500)) == 500


def test_answers_of_4xx_are_no_errors() -> None:
    scene = Scene(10.0, stale_if_error=20.0)
    scene.play(answer("one"))
    scene.clock.advance(11.0)
    assert scene.play(Reply(404)) == 404
    assert scene.play(Reply(500)) == 500, "what it was is not any more"


# -- one fetch for all


class Fetching(AsyncScript):
    """Answers after a second, with what ``outcome`` makes of the number of the fetch."""

    def __init__(self, outcome: Callable[[int], Any]) -> None:
        super().__init__(Script())
        self.fetches = 0
        self._outcome = outcome

    async def send(self, call: Call) -> Any:
        self.fetches += 1
        number = self.fetches
        await asyncio.sleep(1.0)
        outcome = self._outcome(number)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def drop(self, response: Any) -> None: ...
    def hold(self, response: Any, call: Call) -> None:
        call.close()


def together(scene: Scene, sender: Fetching, count: int, *, cancel: int = -1, deadline: float | None = None) -> list[Any]:
    """What ``count`` calls at once come to, of which one is cancelled after half a second."""
    proceed = compose([scene.layer])

    async def one() -> Any:
        call = call_to(deadline=None if deadline is None else scene.clock() + deadline)
        response = await arun(proceed, call, sender)
        return response.read().decode() if response.status_code == 200 else response.status_code

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(one()) for _ in range(count)]
        await asyncio.sleep(0.5)
        if cancel >= 0:
            tasks[cancel].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(scene.clock)) as runner:
        found = runner.run(main())
    assert len(scene.layer.flights) == 0
    return found


def test_one_fetches_for_all() -> None:
    scene, sender = Scene(), Fetching(lambda number: answer(f"{number}"))
    assert together(scene, sender, 50) == ["1"] * 50
    assert sender.fetches == 1
    assert scene.kinds().count("cache.waited") == 49


def test_the_negative_control_without_it_everybody_fetches() -> None:
    scene, sender = Scene(), Fetching(lambda number: answer(f"{number}"))
    scene.layer._together = scene.layer._anew
    together(scene, sender, 50)
    assert sender.fetches == 50


@pytest.mark.parametrize("failure", [ConnectFailed("refused"), httpx2.Response(500)], ids=repr)
def test_when_it_fails_the_next_one_fetches(failure: Any) -> None:
    scene, sender = Scene(), Fetching(lambda number: failure if number == 1 else answer(f"{number}"))
    found = together(scene, sender, 5)
    assert found[1:] == ["2"] * 4
    assert sender.fetches == 2


def test_when_it_is_cancelled_the_next_one_fetches() -> None:
    scene, sender = Scene(), Fetching(lambda number: answer(f"{number}"))
    found = together(scene, sender, 5, cancel=0)
    assert isinstance(found[0], asyncio.CancelledError)
    assert (found[1:], sender.fetches) == (["2"] * 4, 2)


def test_who_waits_may_be_cancelled() -> None:
    scene, sender = Scene(), Fetching(lambda number: answer(f"{number}"))
    found = together(scene, sender, 5, cancel=3)
    assert [isinstance(each, asyncio.CancelledError) for each in found] == [False, False, False, True, False]
    assert sender.fetches == 1


def test_who_waits_does_so_until_his_deadline() -> None:
    scene, sender = Scene(), Fetching(lambda number: answer(f"{number}"))
    found = together(scene, sender, 3, deadline=0.8)
    assert [type(each) for each in found] == [str, DeadlineExceeded, DeadlineExceeded]
    assert "another call fetches the answer" in str(found[1])


def test_who_is_too_late_takes_an_old_answer() -> None:
    scene, sender = Scene(10.0, stale_if_error=20.0), Fetching(lambda number: answer(f"{number}"))
    scene.play(answer("old"))
    scene.clock.advance(11.0)
    assert together(scene, sender, 3, deadline=0.8) == ["1", "old", "old"]


def test_all_get_the_old_answer_when_the_fetch_fails() -> None:
    scene, sender = Scene(10.0, stale_if_error=20.0), Fetching(lambda _: ConnectFailed("refused"))
    scene.play(answer("old"))
    scene.clock.advance(11.0)
    assert together(scene, sender, 5) == ["old"] * 5
    assert sender.fetches == 1


def test_what_is_not_kept_is_fetched_side_by_side() -> None:
    scene, sender = Scene(), Fetching(lambda number: answer(f"{number}", cache_control="no-store"))
    begun = scene.clock()
    assert sorted(together(scene, sender, 5)) == ["1", "2", "3", "4", "5"]
    assert scene.clock() - begun == pytest.approx(2.0), "the first, then all others at once"
    begun = scene.clock()
    assert len(set(together(scene, sender, 5))) == 5
    assert scene.clock() - begun == pytest.approx(1.0), "that it is not kept is known now"


def test_without_a_deadline_nobody_waits_for_ever() -> None:
    scene = Scene()
    scene.layer.flights.board(scene.layer._keys.of(call_to()))  # and never lands
    assert scene.play(answer("own")) == "own"
    assert scene.clock() == 1000.0 + PATIENCE


def test_a_flow_that_nobody_finishes_lets_the_next_one_fetch() -> None:
    scene = Scene()
    flow = compose([scene.layer])(call_to())
    next(flow)
    assert len(scene.layer.flights) == 1
    del flow
    gc.collect()
    assert len(scene.layer.flights) == 0
    assert scene.play(answer("one")) == "one"


def test_who_is_to_fetch_next_and_has_just_gone_lets_the_one_after() -> None:
    flights = Scene().layer.flights
    flight, leads = flights.board("k")
    assert leads is None
    seats = [flights.board("k")[1] for _ in range(3)]
    flights.land("k", flight, None)
    assert [seat.leads for seat in seats] == [True, False, False]
    flights.leave("k", flight, seats[0])
    assert [seat.woken.done() for seat in seats] == [True, True, False]
    assert seats[1].leads
    flights.land("k", flight, "found")
    assert (seats[2].found, len(flights)) == ("found", 0)
    flights.land("k", flight, "late")  # of a flight that is over: nothing
    assert seats[2].found == "found"


# -- functions


def test_functions_by_their_arguments() -> None:
    calls: list[Any] = []

    @cache(60.0)
    def price(of: str, *, amount: float = 1, **options: int) -> list[Any]:
        calls.append((of, amount))
        return [of, amount]

    assert price("tea") is price(of="tea")
    assert price("tea", amount=1.0) is not price("tea")
    assert price("tea", amount=True) is not price("tea")
    assert price("tea", a=1, b=2) is price("tea", b=2, a=1)
    assert len(calls) == 4


def test_exceptions_are_not_kept() -> None:
    outcomes: list[Any] = [OSError(), "there"]

    @cache(60.0)
    def read() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    with pytest.raises(OSError, match=r"^$"):
        read()
    assert (read(), read()) == ("there", "there")


def test_old_values_in_place_of_exceptions() -> None:
    scene = Scene(10.0, stale_if_error=20.0)
    script = [lambda _: 1, OSError(), NotFound("no", status=404)]

    def played() -> Any:
        return play([scene.layer], [script.pop(0)], call=call_to(method="CALL"), clock=scene.clock)

    assert played().result == 1
    scene.clock.advance(15.0)
    assert played().result == 1
    assert isinstance(played().error, NotFound)


def test_what_is_not_hashable() -> None:
    @cache(60.0)
    def read(wanted: list[int]) -> int:
        return len(wanted)

    with pytest.raises(ConfigError, match=r"the argument 'wanted' is a list, which is not hashable; for example key="):
        read([1])

    @cache(60.0, key=lambda call: tuple(call.arguments["wanted"]))
    def keyed(wanted: list[int]) -> list[int]:
        return wanted

    assert keyed([1]) is keyed([1])

    @cache(60.0, key=lambda _: [])
    def wrong() -> None: ...

    with pytest.raises(ConfigError, match="gave a list, which is not hashable"):
        wrong()


def test_coroutines_share_a_fetch() -> None:
    calls: list[int] = []

    @cache(60.0)
    async def read(key: str) -> str:
        calls.append(1)
        await asyncio.sleep(0)
        return key

    async def main() -> list[str]:
        return await asyncio.gather(*(read("a") for _ in range(5)))  # type: ignore[arg-type]

    assert asyncio.run(main()) == ["a"] * 5
    assert len(calls) == 1


def test_threads_share_a_fetch() -> None:
    entered, go, calls = threading.Event(), threading.Event(), list[int]()

    @cache(60.0)
    def read() -> str:
        calls.append(1)
        entered.set()
        assert go.wait(30)
        return "read"

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(read())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert entered.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert (found, len(calls)) == (["read"] * 8, 1)


def test_generators_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="is a generator"):

        @cache(1.0)
        def numbers() -> Iterator[int]:
            yield 1


def test_what_a_fallback_gives_is_not_kept() -> None:
    outcomes: list[Any] = [OSError(), "there"]

    @cache(60.0)
    @fallback(value="instead")
    def read() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    assert [read(), read(), read()] == ["instead", "there", "there"]


def test_its_place() -> None:
    assert [each.kind for each in in_order([cache(1.0), timeout(1.0), fallback(list)])] == ["fallback", "timeout", "cache"]


# -- clients


@cache(60.0)
@service_client("orders")
class Orders(Protocol):
    @get("/orders/{number}")
    def one(self, number: int) -> dict[str, int]: ...
    @get("/orders/{number}")
    async def other(self, number: int) -> dict[str, int]: ...
    @get("/stream")
    def stream(self) -> Iterator[bytes]: ...
    @post("/orders")
    def add(self) -> dict[str, int]: ...


def test_clients() -> None:
    seen: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(f"{request.method} {request.url.path}")
        if request.url.path == "/stream":
            return httpx2.Response(200, stream=Endless())
        return httpx2.Response(200, json={"n": len(seen)})

    mock = httpx2.MockTransport(handler)
    settings = Settings(registry="static://orders=127.0.0.1:1")
    with Mesh(settings, transport=lambda _: mock, async_transport=lambda _: mock) as mesh:
        orders = mesh.client(Orders)
        assert orders.one(1) == orders.one(1) == {"n": 1}
        assert orders.one(1) is not orders.one(1), "each is decoded anew"
        assert orders.one(2) == {"n": 2}

        async def main() -> list[Any]:
            return [await orders.other(1), await orders.other(1)]  # type: ignore[misc]

        assert asyncio.run(main()) == [{"n": 3}, {"n": 3}]
        assert [list(orders.stream()), list(orders.stream())] == [[b"x"], [b"x"]]
        assert orders.add() != orders.add()
        assert len(seen) == 7
        with mesh.http("orders", policies=[cache(60.0)]) as http:
            first, second = http.get("/orders/1"), http.get("/orders/1")
            assert (first.json(), second.json()) == ({"n": 8}, {"n": 8})
            assert 0 <= int(second.headers["age"]) < 60
            assert second.extensions["meshlib.instance"].port == 1
            assert http.get("/orders/1", headers={"Authorization": "other"}).json() == {"n": 9}
        assert "fresh" in str(mesh.explain("orders", path="/orders/1", headers={"Accept": "application/json"}))


# -- forks


def test_in_a_child_nobody_fetches_and_what_is_kept_stays() -> None:
    scene = Scene()
    scene.play(answer("one"))
    flow = compose([scene.layer])(call_to(b"/other"))
    next(flow)
    with scene.layer.flights._lock:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                ok = len(scene.layer.flights) == 0 and scene.play() == "one"
                os.write(write, b"y" if ok and scene.play(answer("mine"), path=b"/other") == "mine" else b"n")
            finally:
                os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"y"
    os.close(read), os.close(write)
    flow.close()


def test_what_a_thread_of_the_parent_was_changing_is_not_kept() -> None:
    scene = Scene()
    scene.play(answer("one"))
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with scene.layer.shelf._lock:
            held.set()
            over.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    scene.layer.shelf.forked()
    over.set()
    thread.join(30)
    assert scene.play(answer("two")) == "two"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cache(0), "cache(ttl=) (from code): 0 is not a number of seconds; for example ttl=60.0"),
        (lambda: cache("1m"), "'1m' is not a number of seconds"),  # type: ignore[arg-type]
        (lambda: cache(1.0, stale_if_error=-1), "cache(stale_if_error=)"), (lambda: cache(1.0, maxsize=0), "cache(maxsize=)"),
        (lambda: cache(1.0, maxsize=True), "True is not a number"), (lambda: cache(1.0, max_bytes=0), "cache(max_bytes=)"),
        (lambda: cache(1.0, key="id"), "'id' is not a function"),  # type: ignore[arg-type]
        (lambda: cache(1.0, methods="GET"), "'GET' is not a list of names"), (lambda: cache(1.0, headers=[]), "cache(headers=)"),
        (lambda: cache(1.0, statuses=[500]), "[500] is not a list of statuses"), (lambda: cache(1.0, shared=1), "cache(shared=)"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_bad_options(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


def test_policies_compare() -> None:
    assert cache(1.0, methods=["get"]) == cache(1.0, methods=("GET",))
    assert len({cache(1.0), cache(1.0), cache(2.0)}) == 2


def test_one_who_waits_may_be_collected_just_as_he_is_to_fetch() -> None:
    flights = Flights()
    flights.board("tea")

    class Collecting(deque[Seat]):
        """The collector may come whenever a function has returned."""

        def popleft(self) -> Seat:
            seat = super().popleft()
            if seat is first:
                flights.leave("tea", self, seat)
            return seat

    flight = flights._flights["tea"] = Collecting()
    (_, first), (_, second) = flights.board("tea"), flights.board("tea")
    assert first is not None
    assert second is not None
    flights.land("tea", flight, None)
    assert (second.leads, second.woken.done()) == (True, True), "else everybody waits for one who is not there"
