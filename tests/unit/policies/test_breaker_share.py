"""A circuit that processes share through a storage of pybreaker's. Here, a process is a site of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pybreaker
import pytest
import redis

from meshlib import CircuitOpen, ConfigError, circuit_breaker
from meshlib.events import Events
from meshlib.policies import breaker_share
from meshlib.policies.base import Site
from meshlib.policies.breaker_share import AGAIN, POLL
from meshlib.testing import FakeClock, Reply, play


class Inline:
    """An executor that does it at once."""

    def submit(self, work: Callable[..., object], *args: Any) -> None:
        work(*args)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_share, "_threads", Inline)


class Process:
    def __init__(self, storage: Any, clock: FakeClock, method: str = "fetch", **options: Any) -> None:
        self.clock, self.events = clock, Events()
        policy = circuit_breaker(minimum=2, probes=1, storage=storage, **options)
        site = Site(service="orders", method=method, clock=clock, wall=lambda: clock.now + 1e9, events=self.events)
        self.layer: Any = policy.bind(site)

    @property
    def breaker(self) -> Any:
        return self.layer.breaker

    def call(self, status: int = 200) -> str:
        error = play([self.layer], [Reply(status)], clock=self.clock).error
        assert error is None or isinstance(error, CircuitOpen)
        return "x" if error else "-"

    def fail(self) -> None:
        self.call(500)
        self.call(500)
        assert self.breaker.state == "open"

    def counted(self, kind: str) -> int:
        return self.events.counts().get((f"circuit_breaker.{kind}", "orders", "fetch"), 0)


class Storage(pybreaker.CircuitMemoryStorage):
    """In memory, counting looks, and out of order when it is told to be."""

    def __init__(self) -> None:
        self.looks, self.broken = 0, False
        super().__init__("closed")

    @property
    def state(self) -> str:
        self.looks += 1
        if self.broken:
            raise OSError("gone")
        return super().state

    @state.setter
    def state(self, state: str) -> None:
        self.looks += 1
        if self.broken:
            raise OSError("gone")
        self._state = state


class Slow(Storage):
    """What is read of it may be old when it arrives: ``meanwhile`` happens in between."""

    meanwhile: Callable[[], object] | None = None

    @property
    def state(self) -> str:
        said = super().state
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return said

    @state.setter
    def state(self, state: str) -> None:
        self._state = state


def test_what_was_read_before_it_opened_does_not_close_it() -> None:
    storage, clock = Slow(), FakeClock()
    one = Process(storage, clock)
    storage.meanwhile = one.fail
    one.call()
    assert (one.counted("opened"), one.counted("closed")) == (1, 0)
    assert (one.breaker.state, storage.state) == ("open", "open")


def two(**options: Any) -> tuple[Process, Process, Storage]:
    storage, clock = Storage(), FakeClock()
    one, other = Process(storage, clock, **options), Process(storage, clock, **options)
    assert one.call() + other.call() == "--"
    return one, other, storage


def test_what_one_opens_is_open_for_the_other() -> None:
    one, other, storage = two()
    one.fail()
    assert storage.state == "open"
    assert storage.opened_at == datetime.fromtimestamp(one.clock.now + 1e9, UTC)
    one.clock.advance(POLL)
    assert other.call() == "x"
    assert other.breaker.condition.retry_after == pytest.approx(5.0 - POLL)
    assert other.counted("opened") == 1
    one.clock.advance(5.0 - POLL)
    assert other.call() == "-", "the probe of one"
    assert (other.breaker.state, storage.state) == ("closed", "closed")
    one.clock.advance(POLL)
    one.call()
    assert one.breaker.state == "closed", "closes it for the other, too"


def test_a_probe_that_fails_opens_it_again_for_all() -> None:
    one, other, _ = two()
    one.fail()
    one.clock.advance(POLL)
    other.call()
    one.clock.advance(5.0)
    one.call(500)
    assert one.breaker.condition.retry_after == 10.0
    one.clock.advance(POLL)
    assert other.call() == "-", "it has asked for a probe before it knew"
    assert one.breaker.state == "open"


def test_a_half_open_one_hears_that_it_is_open() -> None:
    one, other, _ = two()
    one.fail()
    one.clock.advance(POLL)
    other.call()
    one.clock.advance(5.0)
    assert other.breaker.enter()[0] is not None
    assert other.breaker.state == "half-open"
    one.call(500)
    one.clock.advance(POLL)
    assert other.call() == "x"
    assert other.breaker.state == "open"


def test_without_a_storage_each_goes_alone() -> None:
    """The negative control."""
    clock = FakeClock()
    one, other = Process(None, clock), Process(None, clock)
    one.fail()
    clock.advance(POLL)
    assert other.call() == "-"


def test_a_new_process_learns_of_it_and_not_of_what_is_over() -> None:
    one, _, storage = two()
    one.fail()
    one.clock.advance(2.0)
    late = Process(storage, one.clock)
    assert late.call() == "x"
    assert late.breaker.condition.retry_after == 3.0
    one.clock.advance(5.0)
    assert Process(storage, one.clock).call() == "-"


def test_clocks_that_differ_do_not_open_for_longer() -> None:
    one, _, storage = two()
    storage.opened_at = datetime.fromtimestamp(one.clock.now + 2e9, UTC)
    storage.state = "open"
    one.clock.advance(POLL)
    assert one.call() == "x"
    assert one.breaker.condition.retry_after == 5.0
    fresh = Process(storage, one.clock)
    storage._opened_at = None  # of a foreign user: nobody knows when
    assert fresh.call() == "x"
    assert fresh.breaker.condition.retry_after == 5.0


def test_what_is_done_by_hand_holds_here() -> None:
    one, other, storage = two()
    one.breaker.open()
    assert storage.state == "closed"
    other.fail()
    one.clock.advance(5.0)
    other.call()
    assert (other.breaker.state, one.call()) == ("closed", "x")
    one.breaker.disable()
    other.fail()
    one.clock.advance(POLL)
    assert one.call() == "-"


@pytest.mark.parametrize("what", ["open", "disable"])
def test_what_is_done_by_hand_before_the_news_are_told(what: str) -> None:
    one, _, storage = two()
    storage.broken = True
    one.clock.advance(POLL)
    one.fail()
    getattr(one.breaker, what)()
    storage.broken = False
    one.clock.advance(AGAIN)
    one.call()
    assert storage.state == "closed"
    one.breaker.enable()
    one.fail()
    assert storage.state == "open"


def test_no_more_than_ten_looks_a_second() -> None:
    one, _, storage = two()
    storage.looks = 0
    for _ in range(1000):
        one.call()
        one.clock.advance(1 / 256)
    assert 1 < storage.looks <= 10 * 1000 / 256 + 1


def test_one_that_fails_is_left_alone_and_local_state_holds() -> None:
    one, other, storage = two()
    storage.broken = True
    one.clock.advance(POLL)
    one.fail()
    looks = storage.looks
    assert one.call() == "x"
    assert (storage.looks, one.counted("unshared")) == (looks, 1)
    one.clock.advance(AGAIN)
    assert one.call() == "x"
    assert (storage.looks, one.counted("unshared")) == (looks + 1, 1)
    storage.broken = False
    one.clock.advance(AGAIN)
    assert one.call() == "x"
    assert storage.state == "open", "what it was to hear is told later"
    assert other.call() == "x"


def test_one_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked, go = threading.Event(), threading.Event()
    looks = []

    class Stuck(pybreaker.CircuitMemoryStorage):
        @property
        def state(self) -> str:
            looks.append(1)
            asked.set()
            go.wait(300)
            return "closed"

    process = Process(Stuck("closed"), FakeClock())
    try:
        process.call()
        assert asked.wait(60)
        for _ in range(50):
            process.clock.advance(10.0)
            assert process.call() == "-"
        process.clock.advance(60.0)
        process.fail()
        assert len(looks) == 1, "nobody asks while somebody does"
    finally:
        go.set()


class DeadRedis:
    """What ``CircuitRedisStorage`` takes, with nobody there."""

    dead = False
    kept: dict[str, bytes]

    def __init__(self) -> None:
        self.kept = {}

    def _asked(self) -> None:
        if self.dead:
            raise redis.ConnectionError("refused")

    def setnx(self, name: str, value: Any) -> None:
        self._asked()
        self.kept.setdefault(name, str(value).encode())

    def set(self, name: str, value: Any) -> None:
        self._asked()
        self.kept[name] = str(value).encode()

    def get(self, name: str) -> bytes | None:
        self._asked()
        return self.kept.get(name)

    def multi(self) -> None:
        """Begins what is done at once."""

    def transaction(self, work: Callable[[Any], None], *_: str) -> None:
        self._asked()
        work(self)


def test_a_dead_redis_says_nothing_of_the_circuit(caplog: pytest.LogCaptureFixture) -> None:
    """pybreaker's storage logs an error for each look, and says "closed"."""
    server, clock = DeadRedis(), FakeClock()
    storage: Any = pybreaker.CircuitRedisStorage("closed", server)  # type: ignore[arg-type]
    one, other = Process(storage, clock), Process(storage, clock)
    one.call()
    other.call()
    one.fail()
    assert server.kept["pybreaker:state"] == b"open"
    clock.advance(POLL)
    assert other.call() == "x"
    server.dead = True
    for _ in range(4):
        clock.advance(1.0)
        assert one.call() + other.call() == "xx"

    def logged() -> list[str]:
        return [record.name for record in caplog.records if record.name.startswith(("pybreaker", "meshlib.policies"))]

    assert logged() == []
    assert storage.state == "closed", "the negative control"
    assert logged()[0] == "pybreaker"
    assert storage.logger is logging.getLogger("pybreaker"), "the user's object stays as it is"


def test_a_function_makes_one_for_each_circuit() -> None:
    made: dict[str, Any] = {}
    tries: list[str] = []

    def storage(name: str) -> Any:
        tries.append(name)
        if len(tries) == 1:
            raise OSError("not now")  # as Redis' does when nobody is there
        return made.setdefault(name, pybreaker.CircuitMemoryStorage("closed"))

    clock = FakeClock()
    fetch, of = Process(storage, clock), Process(storage, clock, "of")
    assert tries == [], "not before there are calls: it may block"
    assert fetch.call() == "-"
    assert fetch.counted("unshared") == 1
    of.call()
    clock.advance(AGAIN)
    fetch.fail()
    assert {name: each.state for name, each in made.items()} == {"orders.fetch": "open", "orders.of": "closed"}


def test_one_storage_is_one_circuit() -> None:
    storage, clock = Storage(), FakeClock()
    Process(storage, clock)
    Process(storage, clock)
    with pytest.raises(ConfigError) as caught:
        Process(storage, clock, "of")
    assert "is the storage of orders.fetch already: with it, orders.of would open and close" in str(caught.value)


def test_a_child_process_begins_anew() -> None:
    one, other, _ = two()
    share = breaker_share.Share.of(one.breaker)
    assert share is not None
    share._busy.acquire()  # by a thread that the child does not have
    other.fail()
    one.clock.advance(POLL)
    assert one.call() == "-", "the negative control"
    share.forked()
    assert one.call() == "x"
