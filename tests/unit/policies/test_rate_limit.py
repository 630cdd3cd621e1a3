"""The rate limit as a layer: rows of play(), both shells, keys, scopes."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshlib import ConfigError, MissingExtra, RateLimited, keys, rate_limit
from meshlib.events import Event, Events
from meshlib.flow import Call, arun, compose, run
from meshlib.policies import redis_limit, shared_window
from meshlib.policies.base import Policy, Site
from meshlib.policies.gate import Gate, Gates
from meshlib.policies.rates import rates_of
from meshlib.policies.window import window_of
from meshlib.testing import FakeClock, Reply, VirtualLoop, play
from tests.unit.flows import Answer, AsyncScript, Script, call_to


class Place:
    """A site with a clock, what happened there, and layers on it."""

    def __init__(self, directory: Path | None = None, members: int = 1) -> None:
        self.clock, self.events, self.seen = FakeClock(), Events(), list[Event]()
        self.members = members
        self.events.listen(self.seen.append)
        self.site = Site(
            service="orders", method="Orders.fetch", clock=self.clock, events=self.events,
            instances=lambda: self.members, state_dir=lambda: directory or Path("/nowhere"),
        )  # fmt: skip

    def admitted(self, layer: Any, times: int, **call: Any) -> list[float | None]:
        """For each of ``times`` calls in a row None, or the seconds after which it may come again."""
        played = [play([layer], [Reply()], call=call_to(**call), clock=self.clock) for _ in range(times)]
        return [one.error.retry_after if isinstance(one.error, RateLimited) else one.error for one in played]  # type: ignore[misc]


@dataclass(frozen=True)
class Row:
    """``policy``, the ``asks`` (seconds of pause before each), and the pause of each or its refusal's ``retry_after``."""

    policy: Policy
    asks: tuple[float, ...]
    ends: tuple[str, ...]


ROWS = {
    "as many as allowed": Row(rate_limit("2/s"), (0, 0, 0), ("ok", "ok", "refused 1")),
    "the window slides": Row(
        rate_limit("2/s"), (0, 0.5, 0.25, 0.25, 0, 0.5), ("ok", "ok", "refused 0.25", "ok", "refused 0.5", "ok")
    ),
    "exactly at the end": Row(rate_limit("1/s"), (0, 1.0, 1.0), ("ok", "ok", "ok")),
    "several limits": Row(
        rate_limit("2/s", "3/10s"), (0, 0, 0, 1, 0, 5), ("ok", "ok", "refused 1", "ok", "refused 9", "refused 4")
    ),
    "waits": Row(rate_limit("1/s", wait=1.0), (0, 0, 0.5), ("ok", "waited 1", "waited 0.5")),
    "does not wait for too long": Row(rate_limit("1/s", wait=0.5), (0, 0.25, 0.5), ("ok", "refused 0.75", "waited 0.25")),
    "a cold start": Row(
        rate_limit("6/s", warm_up=4.0), (0, 0, 0, 4.5, 0, 0, 0, 0), ("ok", "ok", "refused 1", "ok", "ok", "refused 1",
         "refused 1", "refused 1")
    ),
    "in cells": Row(rate_limit("5000/1s"), (0,), ("ok",)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str) -> None:
    row, place = ROWS[name], Place()
    layer, ends = row.policy.bind(place.site), []
    for pause in row.asks:
        place.clock.advance(pause)
        played = play([layer], [Reply()], clock=place.clock)
        if isinstance(played.error, RateLimited):
            assert played.error.retry_after is not None
            assert played.sent == ()
            ends.append(f"refused {played.error.retry_after:g}")
        else:
            assert played.status == 200
            ends.append(f"waited {played.elapsed:g}" if played.elapsed else "ok")
    assert tuple(ends) == row.ends


def test_what_a_refusal_says() -> None:
    place = Place()
    layer = rate_limit("1/s", "5/m").bind(place.site)
    place.admitted(layer, 1)
    error = play([layer], clock=place.clock).error
    assert isinstance(error, RateLimited)
    assert str(error) == "the limit of 1/1s, 5/60s for orders.Orders.fetch is reached; again in 1 s"
    assert str(error.service) == "orders"
    assert error.headers() == {
        "Retry-After": "1",
        "RateLimit-Policy": '"1/1s";q=1;w=1, "5/60s";q=5;w=60',
        "RateLimit": '"1/1s";r=0;t=1, "5/60s";r=4;t=60',
    }
    assert [(event.kind, event.service, event.method) for event in place.seen] == [
        ("rate_limit.refused", "orders", "Orders.fetch")
    ]
    assert place.seen[0].detail == {"limits": "1/1s, 5/60s", "retry_after": 1.0}


def test_what_answers_say_while_there_is_room() -> None:
    place = Place()
    layer: Any = rate_limit("10/1500ms", key=keys.caller()).bind(place.site)
    call = call_to(headers=[(b"x-mesh-caller", b"shop")])
    assert layer.fields(call) == {}
    play([layer], [Reply()], call=call, clock=place.clock)
    place.clock.advance(0.25)
    assert layer.fields(call) == {"RateLimit-Policy": '"10/1.5s";q=10;w=2', "RateLimit": '"10/1.5s";r=9;t=2'}


def test_the_happy_path_says_nothing() -> None:
    place = Place()
    assert place.admitted(rate_limit("5/s").bind(place.site), 5) == [None] * 5
    assert place.seen == []


def test_the_deadline_bounds_waiting() -> None:
    place = Place()
    layer = rate_limit("1/s", wait=10.0).bind(place.site)
    assert place.admitted(layer, 1) == [None]
    assert place.admitted(layer, 1, deadline=place.clock.now + 0.75) == [1.0]
    assert place.admitted(layer, 1, deadline=place.clock.now + 1.25) == [None]
    assert place.seen[-1].kind == "rate_limit.waited"
    assert place.seen[-1].detail == {"seconds": 1.0}


# -- under the shells


def test_tasks_wait_in_the_order_of_coming_and_a_cancelled_one_gives_its_turn_back() -> None:
    place = Place()
    proceed = compose([rate_limit("1/s", wait=10.0).bind(place.site)])
    ends: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await arun(proceed, call_to(), AsyncScript(Script(Answer())))
        ends.append((number, place.clock.now - 1000.0))

    async def main() -> None:
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.001)
        tasks[1].cancel()
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(place.clock)) as runner:
        runner.run(main())
    assert [number for number, _ in ends] == [0, 2, 4, 5]
    assert [round(when, 2) for _, when in ends] == [0.0, 1.0, 2.0, 3.0]


@rate_limit("2/h", key=keys.parameter("customer"))
def order(item: str, customer: int = 7) -> str:
    return item


@rate_limit("1/h")
async def aorder(item: str) -> str:
    return item


def test_functions() -> None:
    assert [order("tea", 1), order("tea", customer=1), order("tea"), order("tea", 7)] == ["tea"] * 4
    for one in (lambda: order("tea", 1), lambda: order("tea")):
        with pytest.raises(RateLimited, match=r"the limit of 2/3600s for .*\.order is reached; again in 3\.6e\+03 s"):
            one()
    assert order("tea", 8) == "tea"

    async def main() -> None:
        assert await aorder("tea") == "tea"
        with pytest.raises(RateLimited):
            await aorder("tea")

    asyncio.run(main())


# -- keys


def test_each_key_has_its_own_limit_and_those_without_share_one() -> None:
    place = Place()
    layer = rate_limit("1/s", key=keys.header("x-user")).bind(place.site)
    users = [b"a", b"b", b"a", None, None]
    calls = [call_to(headers=[(b"X-User", user)] if user else []) for user in users]
    refused = [isinstance(play([layer], [Reply()], call=call, clock=place.clock).error, RateLimited) for call in calls]
    assert refused == [False, False, True, False, True]


def test_more_keys_than_there_is_room() -> None:
    """The one not asked for longest makes room when it is idle; else newcomers share, which is said once."""
    place = Place()
    numbers = itertools.count()
    layer: Any = rate_limit("1/s", key=lambda call: next(numbers), keys=10).bind(place.site)
    assert place.admitted(layer, 10) == [None] * 10
    place.clock.advance(1.0)
    assert place.admitted(layer, 10) == [None] * 10, "the idle ones have made room"
    assert place.seen == []
    refused = [one for one in place.admitted(layer, 500) if one is not None]
    assert len(refused) > 400, "64 gates for all the others"
    assert [event.kind for event in place.seen].count("rate_limit.crowded") == 1
    gates: Gates = layer._gates
    assert len(gates._gates) == 10
    assert len(gates._shared) <= 64


@pytest.mark.parametrize("bad", [lambda call: [], lambda call: {}])
def test_a_key_that_is_not_hashable(bad: Any) -> None:
    place = Place()
    error = play([rate_limit("1/s", key=bad).bind(place.site)], clock=place.clock).error
    assert isinstance(error, ConfigError)
    assert "which is not hashable" in str(error)


def test_what_a_key_raises_is_raised_in_the_flow() -> None:
    call, released = call_to(), list[int]()
    call.on_close(lambda: released.append(1))
    place = Place()
    with pytest.raises(ZeroDivisionError):
        run(compose([rate_limit("1/s", key=lambda call: 1 / 0).bind(place.site)]), call, Script(Answer()))
    assert released == [1]


# -- scopes


def test_a_share_of_the_cluster() -> None:
    place = Place(members=3)
    layer = rate_limit("10/s", scope="cluster").bind(place.site)
    assert place.admitted(layer, 5) == [None] * 3 + [1.0] * 2
    place.members = 1
    place.clock.advance(0.125)
    assert place.admitted(layer, 8) == [None] * 7 + [0.875], "the others have left: all of it is ours"
    place.members = 40
    place.clock.advance(1.0)
    assert place.admitted(layer, 1) == [3.0], "one in four seconds, from the last one on"
    place.clock.advance(3.0)
    assert place.admitted(layer, 2) == [None, 4.0]


def test_the_processes_of_a_host(tmp_path: Path) -> None:
    """Two layers, as two processes would have them: one window. Another limit, another window."""
    place, other = Place(tmp_path), Place(tmp_path)
    other.clock.now = place.clock.now
    policy = rate_limit("3/s", "4/m", scope="host")
    one, two = policy.bind(place.site), policy.bind(other.site)
    shared_window._logs.clear()
    assert not list(tmp_path.iterdir()), "nothing is opened before it is used"
    assert place.admitted(one, 2) == [None, None]
    shared_window._logs.clear()  # else it would be the same object
    assert other.admitted(two, 2) == [None, 1.0]
    assert place.admitted(one, 1) == [1.0]
    for each in (place, other):
        each.clock.advance(1.0)
    assert place.admitted(one, 1) == [None]
    assert other.admitted(two, 1) == [59.0]
    assert other.admitted(rate_limit("5/s", scope="host").bind(other.site), 1) == [None]
    (file, _) = (tmp_path / "limits").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_whatever_is_in_the_file_it_is_over_after_a_window(tmp_path: Path) -> None:
    place = Place(tmp_path)
    layer: Any = rate_limit("3/s", scope="host").bind(place.site)
    place.admitted(layer, 1)
    log = layer._gates.find(None).window._log
    for damage in (math.nan, math.inf, -math.inf, 1e300, place.clock.now + 0.5, -1.0):
        for cell in range(shared_window.HEADER, len(log.times)):
            log.times[cell] = damage
        place.clock.advance(1.0)
        assert place.admitted(layer, 4) == [None, None, None, 1.0]


def test_a_lock_that_nobody_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process: the limit cannot be kept, so nobody passes; who waits is told, too, and the next ones at once."""
    place = Place(tmp_path)
    layer: Any = rate_limit("1/s", scope="host", wait=5.0).bind(place.site)
    assert place.admitted(layer, 1) == [None]
    take = shared_window._take
    monkeypatch.setattr(shared_window, "PATIENCE", 0.0)
    monkeypatch.setattr(shared_window, "ATTEMPTS", 0)
    monkeypatch.setattr(shared_window, "_take", lambda handle: False)
    assert place.admitted(layer, 2) == [1.0, 1.0]
    monkeypatch.setattr(shared_window, "_take", take)

    def stopped(wait: Any) -> bool:
        monkeypatch.setattr(shared_window, "_take", lambda handle: False)
        return False

    played = play([layer], clock=place.clock, wait=stopped)
    assert isinstance(played.error, RateLimited)
    assert "holds" in str(played.error)
    assert {event.kind for event in place.seen} == {"rate_limit.stuck", "rate_limit.refused"}
    monkeypatch.setattr(shared_window, "_take", take)
    place.clock.advance(10.0)
    assert place.admitted(layer, 1) == [None], "who could not leave the queue is in nobody's way"


def test_a_state_directory_that_others_can_write_to(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits").chmod(0o777)
    played = play([rate_limit("1/s", scope="host").bind(place.site)], clock=place.clock)
    assert isinstance(played.error, ConfigError)
    assert "MESH_STATE_DIR" in str(played.error)


def test_functions_meet_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_STATE_DIR", str(tmp_path))

    @rate_limit("1/h", scope="host", key=keys.parameter("who"))
    def greet(who: str) -> str:
        return who

    assert greet("a") == "a"
    assert greet("b") == "b"
    with pytest.raises(RateLimited):
        greet("a")
    assert len(list((tmp_path / "limits").iterdir())) == 1


@pytest.mark.parametrize(
    ("scope", "options", "said"),
    [
        ("moon", {}, "rate_limit(scope=) (from code): 'moon' is none of process, host, cluster, redis"),
        ("redis", {}, 'url=) (from code): belongs to scope="redis"'),
        ("process", {"url": "redis://x"}, "belongs to"),
        ("host", {"warm_up": 1.0}, "rate_limit(warm_up=) (from code): is not there for scope='host'"),
        ("host", {"limits": ["5000000/s"], "key": len, "keys": 1000}, "are more than 67108864 bytes"),
        ("process", {"key": "user"}, "'user' is not a function of a call; for example key=keys.caller()"),
        ("process", {"keys": 0}, "0 is not a number of keys"),
        ("process", {"wait": -1}, "rate_limit(wait=) (from code): -1 is not a number of seconds"),
        ("process", {"warm_up": "long"}, "'long' is not a number of seconds"),
        ("redis", {"url": "redis://x", "limits": ["1/500ms"]}, "windows are whole seconds in Redis"),
    ],
)
def test_bad_options(scope: str, options: dict[str, Any], said: str) -> None:
    limits = options.pop("limits", ["1/s"])
    with pytest.raises(ConfigError) as caught:
        rate_limit(*limits, scope=scope, **options)
    assert said in str(caught.value)


def test_policies_compare() -> None:
    one, two = rate_limit("100/s", "5000/10m", wait=1.0), rate_limit("5000/10minutes", "100/second", wait=1.0)
    assert one == two
    assert hash(one) == hash(two)
    assert one != rate_limit("100/s", "5000/10m")
    assert repr(one) == "rate_limit('100/1s', '5000/600s', scope='process')"
    with pytest.raises(AttributeError):
        one.wait = 2.0  # type: ignore[misc]


# -- Redis, here played by the library's storage in memory


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``limits`` asks, on one clock with the test."""
    from limits.storage import MemoryStorage

    made = MemoryStorage()
    monkeypatch.setattr("limits.storage.storage_from_string", lambda url, **options: made)
    yield made
    made.timer.cancel()


REDIS: Any = {"scope": "redis", "url": "redis://10.0.0.1", "timeout": 60.0}


def asked(layer: Any, **call: Any) -> float | None:
    try:
        run(compose([layer]), call_to(**call), Script(Answer()))
    except RateLimited as refusal:
        return refusal.retry_after
    return None


def test_redis(storage: Any) -> None:
    layer = rate_limit("2/h", "3/d", key=keys.header("x-user"), **REDIS).bind(Place().site)
    other = rate_limit("2/h", "3/d", key=keys.header("x-user"), **REDIS).bind(Place().site)
    user: Any = {"headers": [(b"x-user", b"a")]}
    assert [asked(layer, **user), asked(other, **user)] == [None, None]
    assert asked(layer, **user) == pytest.approx(3600, abs=30)
    assert asked(layer) is None


def test_redis_in_a_loop(storage: Any) -> None:
    layer = rate_limit("1/h", **REDIS).bind(Site())

    async def main() -> None:
        await arun(compose([layer]), call_to(), AsyncScript(Script(Answer())))
        with pytest.raises(RateLimited):
            await arun(compose([layer]), call_to(), AsyncScript(Script(Answer())))

    asyncio.run(main())


def test_waiting_for_redis(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place, waits = Place(), iter([0.25, 0.5, 0.0])
    layer = rate_limit("1/s", wait=1.0, **REDIS).bind(place.site)
    monkeypatch.setattr(layer, "_take", lambda key: next(waits))
    played = play([layer], [Reply()], clock=place.clock, wait=lambda wait: wait.future.exception(60.0) is None)
    assert played.slept == (0.25, 0.5)
    assert played.status == 200


@pytest.mark.parametrize(("fail_open", "ends"), [(True, [None, None]), (False, [1.0, 1.0])])
def test_a_redis_that_fails(storage: Any, monkeypatch: pytest.MonkeyPatch, fail_open: bool, ends: list[float | None]) -> None:
    calls = []
    monkeypatch.setattr(storage, "acquire_entry", lambda *_, **__: calls.append(1) or 1 / 0)
    place = Place()
    layer = rate_limit("1/s", fail_open=fail_open, **REDIS).bind(place.site)
    assert [asked(layer), asked(layer)] == ends
    assert len(calls) == 1, "it is left alone for a while"
    assert [event.kind for event in place.seen].count("rate_limit.unknown") == 1
    place.clock.advance(redis_limit.AGAIN)
    asked(layer)
    assert len(calls) == 2


def test_a_redis_that_does_not_answer(storage: Any) -> None:
    place = Place()
    layer = rate_limit("1/s", fail_open=False, scope="redis", url="redis://x", timeout=0.5).bind(place.site)
    played = play([layer], clock=place.clock, wait=lambda wait: False)
    assert isinstance(played.error, RateLimited)
    assert "no answer within 0.5 s" in str(played.error)
    assert played.elapsed == 0.5
    assert play([layer], clock=place.clock, wait=lambda wait: False).elapsed == 0.0


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "limits.storage", None)
    with pytest.raises(MissingExtra, match=r"pip install 'meshlib-cloud\[redis\]'"):
        rate_limit("1/s", scope="redis", url="redis://x").bind(Site())


def test_a_url_of_nothing() -> None:
    with pytest.raises(ConfigError, match=r"rate_limit\(url=\)"):
        rate_limit("1/s", scope="redis", url="redes://x").bind(Site())


def test_calls_are_what_keys_see() -> None:
    seen: list[Call] = []
    place = Place()
    layer = rate_limit("1/s", key=lambda call: seen.append(call)).bind(place.site)  # type: ignore[func-returns-value]
    call = call_to(b"/orders/7")
    play([layer], [Reply()], call=call, clock=place.clock)
    assert seen == [call]


def test_one_who_waits_may_be_collected_as_another_looks_how_long_he_means_to() -> None:
    """The collector may come whenever a function has returned."""
    gate = Gate(window_of(rates_of(("1/s",), "rate_limit")[0]), lambda: 5.0)
    turn = gate.join(until=0.0)

    def collecting() -> float:
        gate.leave(turn)
        return 5.0

    gate._clock = collecting
    assert gate.take() == 0.0
    assert gate.waiting == 0
