"""The circuit breaker as a layer: rows of play(), both shells, functions, what is done by hand, events."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from meshlib import (
    AttemptTimeout,
    BulkheadFull,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    Mesh,
    NoInstances,
    Settings,
    StatusError,
    breakers_of,
    circuit_breaker,
    get,
    service_client,
)
from meshlib.client.stack import ORDER, Stack
from meshlib.events import Event, Events
from meshlib.flow import Call, Next, arun, compose, send
from meshlib.policies.base import Commons, Policy, Site
from meshlib.policies.breaker import Breaker
from meshlib.policies.breaker_window import TICKS, TimeWindow
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import ORDERS, SHELLS, Answer, AsyncScript, Script, call_to, instance


class Place:
    """A site with a clock, what happened there, and a layer on it."""

    def __init__(self, policy: Policy, **site: Any) -> None:
        self.clock, self.events, self.seen = FakeClock(), Events(), list[Event]()
        self.events.listen(self.seen.append)
        self.site = Site(service="orders", method="Orders.fetch", clock=self.clock, events=self.events,
                         wall=lambda: self.clock.now + 1e9, **site)  # fmt: skip
        self.layer: Any = policy.bind(self.site)

    @property
    def breaker(self) -> Breaker:
        return self.layer.breaker  # type: ignore[no-any-return]

    def play(self, *script: Any, **options: Any) -> Any:
        return play([self.layer], script, clock=self.clock, **options)

    def steps(self, text: str) -> str:
        """What becomes of each word of ``text``: ``-`` passed, ``x`` refused."""
        ends = ""
        for word in text.split():
            if word not in WORDS:
                self.clock.advance(float(word))
                continue
            error = self.play(WORDS[word]()).error
            ends += "x" if isinstance(error, CircuitOpen) else "-"
        return ends

    @property
    def kinds(self) -> list[str]:
        return [event.kind.removeprefix("circuit_breaker.") for event in self.seen]


def late(**fields: Any) -> DeadlineExceeded:
    return DeadlineExceeded("late", **fields)


WORDS: dict[str, Any] = {
    "ok": Reply,
    "slow": lambda: Reply(seconds=1.0),
    "404": lambda: Reply(404),
    "500": lambda: Reply(500),
    "slow500": lambda: Reply(500, seconds=1.0),
    "429": lambda: Reply(429),
    "503": lambda: Reply(503),
    "503+": lambda: Reply(503, {"retry-after": "1"}),
    "unconnected": lambda: ConnectFailed("no"),
    "timeout": lambda: AttemptTimeout("late"),
    "no-time": late,
    "late": lambda: late(instance=instance()),
    "nobody": lambda: NoInstances("nobody"),
    "full": lambda: BulkheadFull("full"),
    "cancelled": asyncio.CancelledError,
    "closed": GeneratorExit,
    "bug": ZeroDivisionError,
}


@dataclass(frozen=True)
class Row:
    """``policy``, the ``steps`` (words, and seconds that pass), what becomes of each, and the state at the end."""

    policy: Policy
    steps: str
    ends: str
    state: str


FIVE = circuit_breaker(minimum=4, window=8.0, open_for=5.0, probes=2)
SLOW = circuit_breaker(minimum=4, slow=1.0, slow_rate=0.75, probes=2)

ROWS = {
    "opens at the rate": Row(FIVE, "ok ok 500 500 ok", "----x", "open"),
    "not before the minimum": Row(FIVE, "500 500 500", "---", "closed"),
    "by a good one that makes the minimum": Row(FIVE, "500 500 ok ok ok", "----x", "open"),
    "below the rate": Row(FIVE, "ok ok ok 500 500 500", "------", "open"),
    "good ones that leave the window": Row(FIVE, "ok ok ok 7 500 500 3 ok ok ok", "-------x", "open"),
    "bad ones that leave the window": Row(FIVE, "500 500 500 8.5 ok ok ok ok 500", "--------", "closed"),
    "connection errors and time-outs": Row(FIVE, "unconnected timeout late 503 ok", "----x", "open"),
    "an answer is an answer": Row(FIVE, "404 404 404 404 404", "-----", "closed"),
    "what says nothing": Row(FIVE, "500 500 500 429 503+ no-time nobody full cancelled closed bug", "-----------", "closed"),
    "half-open, closed": Row(FIVE, "500 500 500 500 5 ok ok ok", "-------", "closed"),
    "half-open until all have ended": Row(FIVE, "500 500 500 500 5 ok", "-----", "half-open"),
    "half-open, open again": Row(FIVE, "500 500 500 500 5 500 ok", "-----x", "open"),
    "probes are judged by the rate": Row(
        circuit_breaker(minimum=4, probes=5), "500 500 500 500 5 500 500 ok ok ok", "---------", "closed"
    ),
    "the open time grows": Row(FIVE, "500 500 500 500 5 500 5 ok 5 ok", "-----x-", "half-open"),
    "up to a bound": Row(
        circuit_breaker(minimum=1, open_for=5.0, growth=3.0, longest=10.0), "500 5 500 500 9 ok 1 500 500 9.5 ok 0.5 ok",
        "---x--x-", "half-open",
    ),
    "and is forgotten": Row(FIVE, "500 500 500 500 5 500 10 ok ok 500 500 500 500 5 ok", "------------", "half-open"),
    "a probe that says nothing": Row(FIVE, "500 500 500 500 5 cancelled 429 full closed nobody ok ok", "-----------", "closed"),
    "slow ones": Row(SLOW, "slow slow ok slow ok", "----x", "open"),
    "slow and failed": Row(SLOW, "slow500 slow ok slow", "----", "open"),
    "slow ones, below": Row(SLOW, "slow slow ok ok ok", "-----", "closed"),
    "slow probes": Row(SLOW, "slow slow slow slow 5 slow slow", "------", "open"),
    "slow does not matter": Row(FIVE, "slow slow slow slow", "----", "closed"),
    "of the last calls": Row(
        circuit_breaker(calls=4, minimum=4), "500 ok ok ok 100 ok 500 100 500 ok", "-------x", "open"
    ),
    "of the last calls, before the minimum": Row(circuit_breaker(calls=4, minimum=3), "500 500 100 ok ok", "---x", "open"),
    "the last calls forget": Row(circuit_breaker(calls=2, minimum=2, failure_rate=1.0), "500 ok 500 ok ok", "-----", "closed"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str) -> None:
    row = ROWS[name]
    place = Place(row.policy)
    assert (place.steps(row.steps), place.breaker.state) == (row.ends, row.state)


def test_what_a_refused_call_is_told() -> None:
    place = Place(FIVE)
    place.steps("ok 500 500 500 2")
    played = place.play()
    assert isinstance(played.error, CircuitOpen)
    assert str(played.error) == "the circuit of orders.Orders.fetch is open: 3 of 4 calls failed; again in 3 s"
    assert (played.error.retry_after, played.error.service, played.sent) == (3.0, ORDERS, ())
    assert [(event.kind, dict(event.detail)) for event in place.seen] == [
        ("circuit_breaker.opened", {"before": "closed", "seconds": 5.0, "calls": 4, "failures": 3, "slow": 0}),
        ("circuit_breaker.refused", {"retry_after": 3.0}),
    ]
    assert (place.seen[0].service, place.seen[0].method) == ("orders", "Orders.fetch")
    place.steps("3 ok ok")
    assert place.kinds == ["opened", "refused", "half_open", "closed"]


def under_way(place: Place) -> Any:
    """A call that was let through and has not ended."""
    flow = place.layer(call_to(), send)
    next(flow)
    return flow


def end(flow: Any, outcome: Any) -> None:
    with pytest.raises((StopIteration, BaseException)):
        flow.send(outcome) if not isinstance(outcome, BaseException) else flow.throw(outcome)


def test_never_more_probes_than_allowed() -> None:
    place = Place(circuit_breaker(minimum=1, probes=3))
    place.steps("500 5")
    probes = [under_way(place) for _ in range(3)]
    refused = place.play()
    assert isinstance(refused.error, CircuitOpen)
    assert refused.error.retry_after is None, "nobody knows when a probe ends"
    assert str(refused.error) == "the circuit of orders.Orders.fetch is half-open: 0 of 0 calls failed"
    probes.pop().close()  # GeneratorExit: gives its place back
    probes.append(under_way(place))
    assert isinstance(place.play().error, CircuitOpen)
    for probe in probes:
        end(probe, Reply())
    assert place.breaker.state == "closed"


def reached(guard: Any) -> int:
    """How many of twenty trials at once get to what is down."""
    arrived = []

    async def remote() -> None:
        arrived.append(1)
        await asyncio.sleep(0)
        raise OSError

    async def main() -> None:
        await asyncio.gather(*(guarded() for _ in range(20)), return_exceptions=True)

    guarded = guard(remote)
    asyncio.run(main())
    return len(arrived)


def test_no_flood_when_it_is_half_open() -> None:
    """With the negative control: pybreaker lets through whoever comes before the first has ended."""
    import pybreaker

    def half_open(remote: Any) -> Any:
        guarded = circuit_breaker(probes=3)(remote)
        (breaker,) = breakers_of(guarded)
        breaker.open(0.0)
        return guarded

    def theirs(remote: Any) -> Any:
        breaker = pybreaker.CircuitBreaker(reset_timeout=0)
        breaker.open()
        return breaker(remote)

    assert reached(half_open) == 3
    assert reached(theirs) == 20


def test_a_probe_that_nobody_ends_makes_room_and_is_not_heard() -> None:
    place = Place(circuit_breaker(minimum=1, probes=1, probe_for=30.0))
    place.steps("500 5")
    lost = under_way(place)
    assert place.steps("29.9 ok") == "x"
    place.clock.advance(0.1)
    second = under_way(place)
    end(lost, Reply(500))
    assert place.breaker.state == "half-open", "its place is another's"
    assert place.steps("ok") == "x"
    end(second, Reply())
    assert place.breaker.state == "closed"


def test_a_probe_that_is_abandoned_is_collected_in_any_thread_even_one_that_holds_the_lock() -> None:
    place = Place(circuit_breaker(minimum=1, probes=1))
    place.steps("500 5")
    probe = under_way(place)
    phase: Any = place.breaker.phase
    with phase._lock:
        del probe
        gc.collect()
    assert place.steps("ok") == "-"


@pytest.mark.parametrize("outcome", [Reply(500), Reply(200)])
def test_late_results_of_an_older_state_are_dropped(outcome: Reply) -> None:
    place = Place(FIVE)
    old = [under_way(place) for _ in range(8)]
    place.steps("500 500 500 500")
    before = place.breaker.condition
    end(old.pop(), outcome)
    assert place.breaker.condition == before
    place.steps("5 ok")
    end(old.pop(), outcome)
    assert (place.breaker.state, place.breaker.condition.counts.calls) == ("half-open", 1)
    place.steps("ok")
    for each in old:
        end(each, outcome)
    assert (place.breaker.state, place.breaker.condition.counts.calls) == ("closed", 0)


@pytest.mark.parametrize("problem", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt])
@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_cancelled_gives_its_place_back(shell: str, problem: type[BaseException]) -> None:
    place = Place(circuit_breaker(minimum=1, probes=1))
    place.steps("500 5")
    for _ in range(3):
        with pytest.raises(problem):
            SHELLS[shell](compose([place.layer]), call_to(), Script(problem))
    assert place.breaker.state == "half-open"
    SHELLS[shell](compose([place.layer]), call_to(), Script(Answer()))
    assert place.breaker.state == "closed"


def test_tasks_that_are_cancelled() -> None:
    place = Place(circuit_breaker(minimum=1, probes=2))
    place.steps("500 5")

    class Stuck(AsyncScript):
        async def send(self, call: Call) -> Any:
            await asyncio.Event().wait()

    async def main() -> None:
        for _ in range(3):
            tasks = [asyncio.create_task(arun(compose([place.layer]), call_to(), Stuck(Script()))) for _ in range(5)]
            await asyncio.sleep(0)
            ended = [task for task in tasks if task.done()]
            assert len(ended) == 3, "two probes, whatever was cancelled before"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert place.steps("ok ok") == "--"
    assert place.breaker.state == "closed"


def test_no_lock_is_held_while_a_call_is_under_way() -> None:
    """pybreaker's four calls of 0.3 s take 1.2 s; here, they are side by side."""
    place = Place(FIVE)
    flows = [under_way(place) for _ in range(4)]
    for flow in flows:
        end(flow, Reply())
    assert place.breaker.condition.counts.calls == 4


# -- functions


def test_functions() -> None:
    @circuit_breaker(minimum=3, failures=(OSError, ValueError), window=600.0, open_for=60.0)
    def work(problem: Exception | None) -> str:
        if problem is not None:
            raise problem
        return "done"

    (breaker,) = breakers_of(work)
    assert work(None) == "done"
    for problem in (KeyError(), BulkheadFull("ours"), OSError(), ValueError()):
        with pytest.raises(type(problem)):
            work(problem)
    assert (breaker.condition.counts.calls, breaker.condition.counts.failures) == (4, 2)
    with pytest.raises(CircuitOpen, match=r"the circuit of .*work is open: 2 of 4 calls failed"):
        work(None)
    assert (breaker.service, breaker.method) == (__name__, "test_functions.<locals>.work")
    breaker.close()
    assert work(None) == "done"


def test_coroutine_functions_and_the_order_of_decorators() -> None:
    @circuit_breaker(minimum=1, open_for=60.0)
    @circuit_breaker(minimum=2)
    async def work() -> None:
        raise OSError

    with pytest.raises(OSError):
        asyncio.run(work())
    assert [breaker.state for breaker in breakers_of(work)] == ["open", "closed"]
    with pytest.raises(CircuitOpen):
        asyncio.run(work())
    assert breakers_of(test_functions) == ()


@pytest.mark.parametrize(
    ("problem", "state"),
    [
        (StatusError("", status=404), "closed"),
        (StatusError("", status=503, retry_after=1.0), "closed"),
        (StatusError("", status=503), "open"),
        (ConnectFailed(""), "open"),
        (NoInstances(""), "closed"),
        (DeadlineExceeded(""), "open"),
        (CircuitOpen(""), "closed"),
        (ZeroDivisionError(), "open"),
    ],
)
def test_what_functions_raise(problem: Exception, state: str) -> None:
    @circuit_breaker(minimum=1)
    def work() -> None:
        raise problem

    with pytest.raises(type(problem)):
        work()
    assert breakers_of(work)[0].state == state


def test_a_value_is_an_answer_whatever_it_is() -> None:
    @circuit_breaker(minimum=1)
    def work() -> Reply:
        return Reply(500)

    assert work().status == 500
    assert breakers_of(work)[0].state == "closed"


class Foreign:
    """What some libraries return: it has an attribute of that name, and no status."""

    status_code: Any = None


@pytest.mark.parametrize("code", [None, "ok", 503])
def test_a_value_may_have_anything_in_place_of_a_status(code: Any) -> None:
    @circuit_breaker(minimum=1)
    def work() -> Foreign:
        return value

    value = Foreign()
    value.status_code = code
    assert work() is value
    assert (breakers_of(work)[0].condition.counts.calls, breakers_of(work)[0].state) == (1, "closed")


def test_generator_functions_are_seen_when_they_are_made() -> None:
    @circuit_breaker(minimum=1)
    def numbers() -> Iterator[int]:
        yield 1
        raise OSError

    with pytest.raises(OSError):
        list(numbers())
    assert breakers_of(numbers)[0].state == "closed"


def test_which_exceptions_are_failures(caplog: pytest.LogCaptureFixture) -> None:
    place = Place(circuit_breaker(minimum=1, failures=lambda problem: isinstance(problem, AttemptTimeout)))
    place.steps("unconnected nobody")
    assert place.breaker.condition.counts.calls == 1
    assert place.breaker.condition.counts.failures == 0
    place.steps("timeout")
    assert place.breaker.state == "open"
    broken = Place(circuit_breaker(minimum=1, failures=lambda problem: 1 / 0))  # type: ignore[arg-type, return-value]
    assert isinstance(broken.play(ConnectFailed("no")).error, ConnectFailed)
    assert broken.breaker.state == "open"
    assert "circuit_breaker(failures=) failed" in caplog.text


# -- where it stands


def test_one_circuit_per_service_method_and_policy() -> None:
    commons = Commons()

    def bound(policy: Policy = FIVE, **site: Any) -> Breaker:
        layer: Any = policy.bind(Site(**{"service": "orders", "method": "fetch", "commons": commons, **site}))
        return layer.breaker  # type: ignore[no-any-return]

    first = bound()
    assert bound(circuit_breaker(minimum=4, window=8.0, open_for=5.0, probes=2)) is first
    assert bound(method="of") is not first
    assert bound(service="carts") is not first
    assert bound(SLOW) is not first
    assert bound(commons=Commons()) is not first


@service_client("orders", policies=[circuit_breaker(minimum=2)])
class Orders:
    @get("/orders/{id}")
    def fetch(self, id: int) -> dict[str, int]: ...
    @get("/orders")
    def of(self) -> dict[str, int]: ...


def test_the_circuits_of_a_mesh() -> None:
    with Mesh(Settings(registry="memory://breakers-of-a-mesh")) as mesh:
        kept = [mesh.client(Orders), mesh.client(Orders), mesh.http("orders", policies=[FIVE]), mesh.http("carts")]
        found = mesh.breakers("orders")
        assert [(each.service, each.method, each.state) for each in found] == [
            ("orders", "", "closed"), ("orders", "Orders.fetch", "closed"), ("orders", "Orders.of", "closed"),
        ]  # fmt: skip
        assert mesh.breakers("carts") == []
        found[1].open()
        with pytest.raises(CircuitOpen, match=r"the circuit of orders.Orders.fetch is open: 0 of 0 calls failed$"):
            kept[0].fetch(7)  # type: ignore[attr-defined]
        assert "circuit_breaker: open, 0 of 0 calls failed" in str(mesh.explain("orders"))
        assert mesh.events.counts()["circuit_breaker.opened", "orders", "Orders.fetch"] == 1


def down(request: httpx2.Request) -> httpx2.Response:
    if request.url.path == "/refused":
        raise httpx2.ConnectError("refused")
    return httpx2.Response(500, text="down")


async def adown(request: httpx2.Request) -> httpx2.Response:
    return down(request)


def test_clients_of_a_mesh() -> None:
    rule = circuit_breaker(minimum=3, window=600.0, open_for=600.0, longest=600.0)
    with Mesh(
        Settings(registry="static://orders=127.0.0.1:8081;carts=127.0.0.1:8082"),
        transport=lambda _: httpx2.MockTransport(down), async_transport=lambda _: httpx2.MockTransport(adown),
    ) as mesh:  # fmt: skip
        http = mesh.http("orders", policies=[rule])
        assert [http.get("/").status_code, http.get("/").status_code] == [500, 500]
        with pytest.raises(ConnectFailed):
            http.get("/refused")
        with pytest.raises(CircuitOpen, match="the circuit of orders is open: 3 of 3 calls failed; again in"):
            http.get("/")
        with pytest.raises(httpx2.TransportError) as caught:
            mesh.http("orders", policies=[rule]).get("/")
        assert isinstance(caught.value, CircuitOpen), "another client of the same service shares it"
        mounted = httpx2.Client(mounts={"http://carts": mesh.transport(policies=[rule])})
        assert mounted.get("http://carts/").status_code == 500

        async def main() -> None:
            async with mesh.ahttp("carts", policies=[rule]) as client:
                await asyncio.gather(client.get("/"), client.get("/"))
                with pytest.raises(CircuitOpen):
                    await client.get("/")

        asyncio.run(main())
        assert [breaker.state for breaker in mesh.breakers("carts")] == ["open"]
        mounted.close()


def test_it_has_its_place_and_explains() -> None:
    assert ORDER.index("bulkhead") < ORDER.index("circuit_breaker") < ORDER.index("route")

    def below(call: Call) -> Any:
        return (yield from send(call))

    proceed: Next = below
    stack = Stack(Site(service="orders"), [FIVE], proceed)
    ((kind, said),) = stack.explain(call_to())
    assert (kind, str(said)) == ("circuit_breaker", "closed, 0 of 0 calls failed")
    place = Place(SLOW)
    place.steps("slow500 ok slow slow 1")
    condition = place.layer.explain(call_to())
    assert str(condition) == "open for another 4 s, 1 of 4 calls failed, 3 were slow"
    assert (condition.retry_after, condition.counts.failure_rate, condition.counts.slow_rate) == (4.0, 0.25, 0.75)


# -- by hand


def test_by_hand() -> None:
    place = Place(FIVE)
    breaker = place.breaker
    place.steps("500 500 500")
    breaker.open()
    assert place.steps("ok 1000 ok") == "xx"
    assert place.play().error.retry_after is None
    breaker.enable()
    assert place.steps("500 500 500") == "---", "it begins anew"
    breaker.open(7.0)
    assert place.steps("6.5 ok 0.5 ok ok ok") == "x---"
    breaker.disable()
    assert place.steps("500 500 500 500 500") == "-----"
    assert repr(breaker) == "<circuit of orders.Orders.fetch: disabled, 0 of 0 calls failed>"
    breaker.enable()
    place.steps("500 500 500 500")
    breaker.enable()
    assert breaker.state == "open", "that is its own decision"
    breaker.close()
    assert place.steps("ok") == "-"
    assert place.kinds.count("disabled") == 1


def test_a_child_process_begins_anew() -> None:
    place = Place(circuit_breaker(minimum=1, probes=1))
    place.steps("500 5")
    held = under_way(place)
    phase: Any = place.breaker.phase
    phase._lock.acquire()  # by a thread that the child does not have
    place.breaker._lock.acquire()
    place.breaker.forked()
    assert place.steps("ok") == "-", "a call of the parent's takes no place"
    assert place.breaker.state == "closed"
    held.close()
    for policy in (FIVE, circuit_breaker(calls=10)):
        place = Place(policy)
        place.steps("500")
        window: Any = place.breaker.phase._window  # type: ignore[union-attr]
        window._lock.acquire()
        place.breaker.forked()
        place.steps("500")
        assert place.breaker.condition.counts.failures == 2, "what is known stays"


def test_memory_is_bounded() -> None:
    clock = FakeClock()
    window = TimeWindow(10.0, 10, clock)
    for step in range(5000):
        clock.advance(0.3)
        window.good() if step % 3 else window.bad(True, False)
    assert len(window._past) <= TICKS + 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"failure_rate": 0}, "(failure_rate=) (from code): 0 is not a share above 0, up to 1; for example failure_rate=0.5"),
        ({"failure_rate": 50}, "50 is not a share above 0"),
        ({"slow_rate": True}, "True is not a share"),
        ({"slow": -1}, "circuit_breaker(slow=) (from code): -1 is not a number of seconds"),
        ({"window": "10s"}, "'10s' is not a number of seconds up to a day"),
        ({"growth": 0.5}, "0.5 is not a factor from 1 to 100"),
        ({"minimum": 0}, "circuit_breaker(minimum=) (from code): 0 is not a whole number from 1 to 100000"),
        ({"probes": 2.0}, "2.0 is not a whole number from 1 to 1000"),
        ({"calls": 5}, "10 is more than calls=5, so it would never open; for example minimum=5"),
        ({"longest": 1.0}, "1.0 is less than open_for=5.0"),
        ({"failures": "OSError"}, "'OSError' are neither exceptions nor a function of one"),
        ({"failures": (int,)}, "are neither exceptions"),
        ({"listeners": 5}, "5 is no list"),
        ({"listeners": [5]}, "5 has no state_change()"),
        ({"storage": "redis://x"}, "'redis://x' is no storage of pybreaker's"),
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        circuit_breaker(**options)
    assert said in str(caught.value)


def test_policies_compare() -> None:
    assert circuit_breaker(0.5) == circuit_breaker(failure_rate=0.5)
    assert circuit_breaker(0.5) != circuit_breaker(0.6)
    assert len({circuit_breaker(), circuit_breaker(), circuit_breaker(calls=50)}) == 2
