"""Answers that are kept, against naive models: a dict with times, and threads that want the same at once."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from meshlib import ConnectFailed, cache, fallback
from meshlib.flow import Call, compose, run
from meshlib.policies.base import Site
from meshlib.policies.flights import Flights
from meshlib.testing import FakeClock, play
from tests.unit.flows import Script, call_to

TTL, STALE, LAST, ROOM = 10.0, 20.0, 15.0, 3
PATHS = st.sampled_from([b"/1", b"/2", b"/3", b"/4"])
PAUSES = st.sampled_from([0.0, 0.5, 1.0, 3.0, 5.0, 9.5, 10.0, 15.0, 20.0, 31.0])


def answer(number: int, said: str = "") -> httpx2.Response:
    return httpx2.Response(200, text=str(number), headers={"cache-control": said} if said else {})


class Machine(RuleBasedStateMachine):
    """Calls under one layer, each with an answer of another number. The model keeps everything, with its time, in the order
    in which it was last asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.number = FakeClock(), 0
        self.layer: Any = self.policy().bind(Site(clock=self.clock))
        self.known: dict[bytes, tuple[str, float, float, float]] = {}  # the number, from, until, end

    def policy(self) -> Any:
        raise NotImplementedError

    def play(self, path: bytes, *script: Any) -> str:
        played = play([self.layer], script, call=call_to(path), clock=self.clock)
        if isinstance(played.error, ConnectFailed):
            return "error"
        assert played.error is None, played.error
        found: bytes = played.result.read()
        return "failed" if played.result.status_code == 500 else found.decode()

    def next(self) -> int:
        self.number += 1
        return self.number

    def here(self, path: bytes) -> tuple[str, float, float, float] | None:
        """What the model has for ``path``, which is asked for now."""
        self.known = {name: each for name, each in self.known.items() if self.clock() < each[3]}
        found = self.known.pop(path, None)
        if found is not None:
            self.known[path] = found
        return found

    def keep(self, path: bytes, number: int, fresh: float, stale: float) -> None:
        now = self.clock()
        self.known.pop(path, None)
        self.known = {name: each for name, each in self.known.items() if now < each[3]}
        self.known[path] = (str(number), now, now + fresh, now + fresh + stale)
        while len(self.known) > ROOM:
            del self.known[next(iter(self.known))]

    @rule(seconds=PAUSES)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)


class CacheMachine(Machine):
    def policy(self) -> Any:
        return cache(TTL, maxsize=ROOM, stale_if_error=STALE)

    @rule(path=PATHS, said=st.sampled_from([("", TTL, STALE), ("max-age=4", 4.0, STALE), ("stale-if-error=2", TTL, 2.0),
                                            ("must-revalidate", TTL, 0.0)]))  # fmt: skip
    def answered(self, path: bytes, said: tuple[str, float, float]) -> None:
        known, number = self.here(path), self.next()
        found = self.play(path, answer(number, said[0]))
        if known is not None and self.clock() < known[2]:
            assert found == known[0]
        else:
            assert found == str(number)
            self.keep(path, number, *said[1:])

    @rule(path=PATHS, failed=st.booleans())
    def failed(self, path: bytes, failed: bool) -> None:
        known = self.here(path)
        found = self.play(path, httpx2.Response(500) if failed else ConnectFailed("refused"))
        assert found == (known[0] if known is not None else "failed" if failed else "error")


class LastGoodMachine(Machine):
    def policy(self) -> Any:
        return fallback(last_good=LAST, keys=ROOM)

    @rule(path=PATHS)
    def answered(self, path: bytes) -> None:
        number = self.next()
        assert self.play(path, answer(number)) == str(number)
        self.keep(path, number, LAST, 0.0)

    @rule(path=PATHS)
    def forbidden(self, path: bytes) -> None:
        number = self.next()
        assert self.play(path, answer(number, "no-store")) == str(number)

    @precondition(lambda self: self.number)
    @rule(path=PATHS, failed=st.booleans())
    def failed(self, path: bytes, failed: bool) -> None:
        known = self.here(path)
        found = self.play(path, httpx2.Response(500) if failed else ConnectFailed("refused"))
        assert found == (known[0] if known is not None else "failed" if failed else "error")


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLastGood = LastGoodMachine.TestCase
TestLastGood.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# -- threads


@pytest.fixture
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


THREADS, ROUNDS = 8, 60


class Storm(Script):
    """Threads that want a few keys, whose answers differ in each round; of the fetches some fail."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer: Any = cache(60.0).bind(Site())
        self.proceed = compose([self.layer])
        self.chance, self.lock = random.Random(seed), threading.Lock()
        self.fetching: dict[bytes, int] = {}
        self.kept: set[bytes] = set()
        self.together = self.twice = self.failed = 0
        self.problems: list[BaseException] = []
        self.barrier = threading.Barrier(THREADS)

    def send(self, call: Call) -> Any:
        with self.lock:
            self.fetching[call.path] = self.fetching.get(call.path, 0) + 1
            self.together += self.fetching[call.path] > 1
            self.twice += call.path in self.kept
        try:
            if self.chance.random() < 0.3:
                raise ZeroDivisionError
            with self.lock:
                self.kept.add(call.path)
            return httpx2.Response(200, content=call.path)
        finally:
            with self.lock:
                self.fetching[call.path] -= 1

    def hold(self, response: Any, call: Call) -> None:
        call.close()

    def ask(self) -> None:
        try:
            for number in range(ROUNDS):
                self.barrier.wait(60)
                path = b"/%d" % number
                try:
                    assert run(self.proceed, call_to(path), self).read() == path
                except ZeroDivisionError:
                    with self.lock:
                        self.failed += 1
        except BaseException as problem:
            self.problems.append(problem)
            self.barrier.abort()

    def blow(self) -> None:
        threads = [threading.Thread(target=self.ask) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "somebody waits for an answer that never comes"


@pytest.mark.parametrize("seed", range(2))
def test_one_fetch_at_a_time_and_none_in_vain(seed: int, switching: None) -> None:
    storm = Storm(seed)
    storm.blow()
    assert storm.problems == []
    assert storm.failed > 0
    assert (storm.together, storm.twice) == (0, 0)
    assert len(storm.layer.flights) == 0


def test_the_negative_control_without_waiting(switching: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a flight of his own fetches beside others."""
    board = Flights.board

    def alone(self: Flights, key: Any) -> Any:
        return board(self, (key, object()))

    monkeypatch.setattr(Flights, "board", alone)
    storms = [Storm(seed) for seed in range(5)]
    for storm in storms:
        storm.blow()
    assert sum(storm.together for storm in storms) > 0
