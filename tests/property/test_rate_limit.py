"""Windows in lockstep with a log of everything that ever passed."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib import rate_limit
from meshlib.flow import compose, run
from meshlib.policies import gate as gates
from meshlib.policies import window as windows
from meshlib.policies.base import Site
from meshlib.policies.gate import Gate, Gates, Turn
from meshlib.policies.host_gates import HostGates
from meshlib.policies.rates import Rate
from meshlib.policies.window import AllOf, Cells, Ring, Share, Warming, Window
from meshlib.testing import FakeClock
from tests.unit.flows import Answer, Script, call_to

# Multiples of a power of two: sums and differences of them are exact, here and in the model.
STEPS = st.lists(st.tuples(st.integers(0, 96), st.integers(1, 6)), min_size=1, max_size=120)
UNIT = 1 / 64


class Log:
    """All that passed, and the plain question how many of it are in the last ``seconds``."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def within(self, now: float, seconds: float) -> int:
        return sum(now - then < seconds for then in self.times)

    def most(self, seconds: float) -> int:
        """The most in any half-open window: one that begins with an event is among the fullest."""
        return max((sum(0 <= then - start < seconds for then in self.times) for start in self.times), default=0)


@given(STEPS, st.integers(1, 12), st.sampled_from([0.5, 1.0, 3.0]))
def test_a_ring_is_a_log(steps: list[tuple[int, int]], count: int, seconds: float) -> None:
    clock, log = FakeClock(), Log()
    ring = Ring(Rate(seconds, count))
    gate = Gate(ring, clock)
    for pause, asks in steps:
        clock.advance(pause * UNIT)
        now = clock.now
        for _ in range(asks):
            used = log.within(now, seconds)
            assert ring.left(now) == count - used
            wait = gate.take()
            assert (wait == 0.0) == (used < count), "admitted exactly when the window has room"
            if wait:
                assert log.within(now + wait, seconds) < count, "there is room when it says so"
                assert log.within(now + wait - UNIT / 2, seconds) == count, "and not before"
            else:
                log.times.append(now)
    assert log.most(seconds) <= count


@given(STEPS, st.integers(1, 8), st.integers(0, 40))
def test_what_a_ring_says_of_those_behind_others(steps: list[tuple[int, int]], count: int, ahead: int) -> None:
    """``free_in(ahead)`` is when one passes if those ahead pass as soon as they may."""
    ring, now = Ring(Rate(1.0, count)), 1000.0
    for pause, asks in steps:
        now += pause * UNIT
        for _ in range(asks):
            ring.take(now)
    expected, simulated = ring.free_in(now, ahead), now
    for _ in range(ahead + 1):
        simulated += ring.free_in(simulated)
        ring.add(simulated)
    assert expected == simulated - now


@given(STEPS, st.integers(1, 60))
@settings(max_examples=200)
def test_cells_keep_the_bound_and_lose_at_most_a_cell(steps: list[tuple[int, int]], count: int) -> None:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(windows, "CELLS", 16)  # wide ones: 1/16 s
    try:
        cells, log, now, width = Cells(Rate(1.0, count)), Log(), 1000.0, 1 / 16
        for pause, asks in steps:
            now += pause * UNIT
            for _ in range(asks * 3):
                wait = cells.take(now)
                if not wait:
                    log.times.append(now)
                    continue
                assert log.within(now, 1.0 + width) >= count, "refused, only what is older by more than a cell counts no more"
                assert copy.deepcopy(cells).free_in(now + wait) == 0.0  # a copy: a window does not look ahead
            assert cells._size <= 16 + 2
        assert log.most(1.0) <= count
    finally:
        monkeypatch.undo()


def test_cells_of_two_hours() -> None:
    """The size and the precision that are promised, with the real number of cells."""
    rate = Rate.parse("20000/2h")
    cells, now, late = Cells(rate), 1000.0, 0.0
    passed: deque[float] = deque(maxlen=rate.count + 1)
    for step in range(3 * 7200):  # more than may pass, in uneven steps
        now += 0.75 + (step % 3) * 0.25
        for _ in range(25 if step % 7 == 0 else 2):
            if cells.take(now):
                free = now + cells.free_in(now)
                late = max(late, free - (passed[-rate.count] + rate.seconds))
                break
            passed.append(now)
            assert len(passed) <= rate.count or now - passed[0] >= rate.seconds
        assert cells._size <= windows.CELLS + 2
    assert 0 < late <= rate.seconds / 1000
    assert sys.getsizeof(cells._times) + sys.getsizeof(cells._counts) < 20_000


class Fixed(Ring):
    """What many take for a window: a counter that begins anew every ``seconds``."""

    def take(self, now: float, ahead: int = 0) -> float:
        era = now // self.rate.seconds
        self.used = self.used + 1 if getattr(self, "era", None) == era else 1
        self.era = era
        return 0.0 if self.used <= self.rate.count else 0.1


def test_the_negative_control_a_fixed_window_fails() -> None:
    fixed, log = Fixed(Rate(1.0, 10)), Log()
    for now in (0.9, 1.1):
        log.times += [now for _ in range(10) if not fixed.take(now)]
    assert log.most(1.0) == 20


@given(STEPS)
def test_all_of_several_or_none(steps: list[tuple[int, int]]) -> None:
    rates = [Rate(0.5, 3), Rate(2.0, 7), Rate(8.0, 12)]
    both, log, now = AllOf([Ring(rate) for rate in rates]), Log(), 1000.0
    for pause, asks in steps:
        now += pause * UNIT
        for _ in range(asks):
            room = all(log.within(now, rate.seconds) < rate.count for rate in rates)
            wait = both.take(now)
            assert (wait == 0.0) == room
            if room:
                log.times.append(now)
            else:
                assert both.free_in(now + wait) == 0.0
    for rate in rates:
        assert log.most(rate.seconds) <= rate.count


@given(STEPS, st.integers(1, 30))
def test_warming_up(steps: list[tuple[int, int]], count: int) -> None:
    """At each moment no more than the model allows, exactly as many if asked for, and again when it says."""
    rate = Rate(1.0, count)
    warming, log, now, since = Warming(Ring(rate), 4.0), Log(), 1000.0, 0.0
    for pause, asks in steps:
        now += pause * UNIT
        for _ in range(asks):
            if not log.times or now - log.times[-1] >= 4.0:
                since = now
            warm = min(1.0, (now - since) / 4.0)
            allowed = max(1, int(count * (1 + 2 * warm) / 3 + 1e-9))
            wait = warming.take(now)
            assert (wait == 0.0) == (log.within(now, 1.0) < allowed)
            if wait:
                assert warming.free_in(now + wait + 1e-9) == 0.0
                assert warming.free_in(now + wait / 2) > 0.0, "not before"
            else:
                log.times.append(now)
    assert log.most(1.0) <= count


@given(STEPS, st.integers(1, 12), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_shares(steps: list[tuple[int, int]], count: int, members: list[int]) -> None:
    """Each of k gets its share, so that all k together never exceed the quota in a window (or on average, where a share is
    less than one), also after k has changed."""
    rate, now = Rate(1.0, count), 1000.0
    sharers = itertools.cycle(members)
    current = next(sharers)
    share, log = Share(Ring(rate), lambda: current), Log()
    for number, (pause, asks) in enumerate(steps):
        now += pause * UNIT
        if number % 10 == 9:
            current = next(sharers)
            now += 0.125  # it is noticed a tenth of a second later
        for _ in range(asks):
            allowed = max(1, count // current)
            stretch = max(1.0, current / count)
            wait = share.take(now)
            if wait:
                recent = log.within(now, stretch if stretch > 1 else 1.0)
                assert recent >= allowed, "nobody is refused who need not be"
            else:
                log.times.append(now)
                assert log.within(now, 1.0) <= allowed
                assert stretch == 1 or log.within(now, stretch - 1e-9) == 1


def host(tmp_path_factory: Any, limits: list[Rate], clock: FakeClock, keys: int = 1) -> HostGates:
    directory = Path(tmp_path_factory.mktemp("host"))
    return HostGates(tuple(limits), keys, Site(clock=clock, state_dir=lambda: directory))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_window_in_a_file_is_a_log(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    steps, count = data.draw(STEPS), data.draw(st.integers(1, 12))
    clock, log = FakeClock(), Log()
    shared = host(tmp_path_factory, [Rate(1.0, count), Rate(4.0, 2 * count)], clock)
    for pause, asks in steps:
        clock.advance(pause * UNIT)
        for _ in range(asks):
            room = log.within(clock.now, 1.0) < count and log.within(clock.now, 4.0) < 2 * count
            _, wait = shared.take(None)
            assert (wait == 0.0) == room
            if room:
                log.times.append(clock.now)
    assert log.most(1.0) <= count
    assert log.most(4.0) <= 2 * count


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whoever_dies_while_writing_harms_nobody(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Each write may be the last one of its process: never too many pass, and a window later all may."""
    steps, count = data.draw(STEPS), data.draw(st.integers(1, 6))
    clock, log = FakeClock(), Log()
    shared = host(tmp_path_factory, [Rate(1.0, count)], clock)
    ring: Any = shared.find(None).window
    for pause, asks in steps:
        clock.advance(pause * UNIT)
        for _ in range(asks):
            if data.draw(st.integers(0, 3)) == 0:
                with shared.find(None)._lock:
                    if not ring.free_in(clock.now):
                        _written(ring, clock.now, data.draw(st.integers(0, 2)))
            elif not shared.take(None)[1]:
                log.times.append(clock.now)
    assert log.most(1.0) <= count
    clock.advance(1.0)
    assert [not shared.take(None)[1] for _ in range(count + 1)] == [True] * count + [False]


class Died(BaseException):
    """In the place of SIGKILL."""


class Dying:
    """Cells of which only ``left`` more writes succeed, of all views together."""

    left = 0

    def __init__(self, cells: Any) -> None:
        self._cells = cells

    def __getitem__(self, place: int) -> Any:
        return self._cells[place]

    def __setitem__(self, place: int, value: Any) -> None:
        if Dying.left == 0:
            raise Died
        Dying.left -= 1
        self._cells[place] = value


def _written(ring: Any, now: float, writes: int) -> None:
    """One passes, and its process dies after ``writes`` writes."""
    log, Dying.left = ring._log, writes
    log.numbers, log.times = Dying(log.numbers), Dying(log.times)
    with pytest.raises(Died):
        ring.add(now)
    log.numbers, log.times = log.numbers._cells, log.times._cells


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_no_key_exceeds_its_limit_however_many_there_are(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """More keys than room, in memory and in a file; and a key that is alone has all it may."""
    asks = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), max_size=200))
    clock = FakeClock()
    by_key: list[Any] = [
        Gates(lambda: Ring(Rate(1.0, 2)), clock, 4, lambda: None), host(tmp_path_factory, [Rate(1.0, 2)], clock, 8)
    ]  # fmt: skip
    logs: list[dict[int, Log]] = [{}, {}]
    for pause, key in asks:
        clock.advance(pause * UNIT)
        for gate, log in zip(by_key, logs, strict=True):
            if not gate.take(key)[1]:
                log.setdefault(key, Log()).times.append(clock.now)
    for log in logs:
        assert all(one.most(1.0) <= 2 for one in log.values())
    clock.advance(1.0)
    for gate in by_key:
        assert [gate.take(77)[1] == 0.0 for _ in range(3)] == [True, True, False], "once idle keys have made room"
    assert len(by_key[0]._gates) <= 4


def test_the_negative_control_forgetting_exceeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an ordinary LRU does: a key that was dropped begins anew."""
    monkeypatch.setattr(Gate, "idle", lambda self: True)
    clock = FakeClock()
    forgetful = Gates(lambda: Ring(Rate(1.0, 2)), clock, 4, lambda: None)
    passed = 0
    for _ in range(5):
        passed += sum(not forgetful.take("hot")[1] for _ in range(2))
        for key in range(4):
            forgetful.take(key)
    assert passed > 2


@pytest.fixture
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def admitted(gate: Any, *, seconds: float, threads: int = 8) -> list[float]:
    """The times (as the gate itself reads them) at which ``threads`` threads pass that do nothing but ask: for ``seconds``
    from when all are there."""
    passed: list[list[float]] = [[] for _ in range(threads)]
    together = threading.Barrier(threads)

    def hammer(mine: list[float]) -> None:
        together.wait(60)
        stop = time.monotonic() + seconds
        while True:
            if not gate.take():
                mine.append(0.0)
            if time.monotonic() >= stop:
                return

    workers = [threading.Thread(target=hammer, args=(mine,)) for mine in passed]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    return [time for mine in passed for time in mine]


class Noted(Ring):
    """Notes when one passes. With the lock off, others come in between: the more, the longer the ``pause``."""

    def __init__(self, rate: Rate, pause: int = 20) -> None:
        super().__init__(rate)
        self.log, self.pause = Log(), pause

    def take(self, now: float, ahead: int = 0) -> float:
        wait = self.free_in(now, ahead)
        if not wait:
            self._pause()
            self.add(now)
            self.log.times.append(now)
        return wait

    def _pause(self) -> None:
        """Room for other threads."""
        for _ in range(self.pause):
            pass


RATE = Rate(0.02, 5)


def test_eight_threads(switching: None) -> None:
    window = Noted(RATE)
    count = len(admitted(Gate(window, time.monotonic), seconds=0.5))
    times = sorted(window.log.times)
    assert len(times) == count >= 5
    assert all(late - early >= RATE.seconds for early, late in zip(times, times[RATE.count :], strict=False))


class NoLock:
    def acquire(self) -> None: ...
    def release(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_the_negative_control_without_the_lock(switching: None) -> None:
    """Threads that look and then take, without excluding each other, are too many sooner or later."""
    for attempt in range(20):
        window = Noted(RATE, pause=20 << min(attempt, 10))
        count = len(admitted(Gate(window, time.monotonic, lambda: NoLock()), seconds=0.3))
        times = sorted(window.log.times)
        if any(late - early < RATE.seconds for early, late in zip(times, times[RATE.count :], strict=False)):
            return
    pytest.fail(f"{count} passed and never too many: the test above proves nothing")


# -- queues: who waits passes in the order of coming, and nothing is lost when somebody leaves


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_queues(data: st.DataObject) -> None:
    """Everybody who waits comes when told to (or late), some leave: in order, within the bound, and nobody waits in vain."""
    count = data.draw(st.integers(1, 4))
    clock, log, window = FakeClock(), Log(), Ring(Rate(1.0, count))
    gate = Gate(window, clock)
    waiting: list[Turn] = []
    order: list[Turn] = []
    for action in data.draw(st.lists(st.sampled_from(["ask", "ask", "leave", "later", "run"]), max_size=80)):
        if action == "ask":
            if gate.take():
                waiting.append(gate.join(until=clock.now + 1e6))
                gate.go(waiting[-1])
            else:
                assert not waiting, "nobody passes those who wait"
                log.times.append(clock.now)
        elif action == "leave" and waiting:
            gate.leave(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
        elif action == "later":
            clock.advance(data.draw(st.integers(0, 40)) * UNIT)
        elif action == "run":
            clock.advance(data.draw(st.integers(0, 40)) * UNIT)
        _run(gate, clock, waiting, order, log)
    while waiting:
        before = len(waiting)
        due = clock.now if any(turn.woken.done() for turn in waiting) else min(turn.due for turn in waiting)
        clock.now = max(clock.now, due)
        _run(gate, clock, waiting, order, log)
        full = log.within(clock.now, 1.0) >= count
        assert len(waiting) < before or full, "somebody was told to come, there was room, and nobody passed"
    assert log.most(1.0) <= count


def _run(gate: Gate, clock: FakeClock, waiting: list[Turn], order: list[Turn], log: Log) -> None:
    """Those who are due, or were woken, come."""
    for turn in list(waiting):
        if turn.due <= clock.now or turn.woken.done():
            if not gate.go(turn):
                log.times.append(clock.now)
                assert waiting[0] is turn, "in the order of coming"
                waiting.remove(turn)
                order.append(turn)


def test_whoever_leaves_gives_its_turn_to_the_next() -> None:
    """One per second; three wait, the first two leave: the third comes at the time of the first."""
    clock = FakeClock()
    gate = Gate(Ring(Rate(1.0, 1)), clock)
    assert gate.take() == 0.0
    turns = [gate.join(clock.now + 100) for _ in range(3)]
    assert [gate.go(turn) for turn in turns] == [1.0, 2.0, 3.0]
    gate.leave(turns[0])
    assert turns[1].woken.done()
    assert gate.go(turns[1]) == 1.0
    gate.leave(turns[1])
    assert turns[2].woken.done()
    assert gate.go(turns[2]) == 1.0
    clock.advance(1.0)
    assert gate.go(turns[2]) == 0.0


def test_whoever_does_not_come_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()

    def second_passes() -> bool:
        gate = Gate(Ring(Rate(1.0, 1)), clock)
        assert gate.take() == 0.0
        gate.go(gate.join(clock.now + 1.5))  # and it never comes again: its loop is blocked
        clock.advance(3.0)
        return gate.take() == 0.0

    assert second_passes()
    monkeypatch.setattr(gates, "OVERDUE", 1e9)  # the negative control
    assert not second_passes()


def test_windows_are_what_they_say() -> None:
    assert isinstance(windows.window_of(Rate(1.0, windows.EXACT)), Ring)
    assert isinstance(windows.window_of(Rate(1.0, windows.EXACT + 1)), Cells)
    with pytest.raises(NotImplementedError):
        Window().free_in(0.0)


def test_a_thread_waits_for_as_long_as_it_has_to() -> None:
    proceed = compose([rate_limit("2/100ms", wait=10.0).bind(Site())])
    start = time.monotonic()
    for _ in range(5):
        run(proceed, call_to(), Script(Answer()))
    assert time.monotonic() - start >= 0.2
