"""What is recorded is counted once, whoever counts it."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.metrics.recorder import BOUNDS, FULL, Recorder, Series


def naive(numbers: list[float]) -> tuple[tuple[int, ...], int]:
    return tuple(sum(number <= bound for number in numbers) for bound in BOUNDS), len(numbers)


@given(st.lists(st.sampled_from([0.0, 0.001, *BOUNDS, 0.0050001, 11.0]) | st.floats(0, 20), max_size=700), st.data())
def test_like_a_naive_histogram(numbers: list[float], data: st.DataObject) -> None:
    series = Series()
    readings = data.draw(st.sets(st.integers(0, 700), max_size=5))
    for index, number in enumerate(numbers):
        series.add(number)
        if index in readings:
            assert series.read()[:2] == naive(numbers[: index + 1])
    counts, total, seconds = series.read()
    assert (counts, total) == naive(numbers)
    assert seconds == pytest.approx(sum(numbers))
    assert series.read() == (counts, total, seconds), "reading changes nothing"


def test_callers_count_when_much_waits() -> None:
    series = Series()
    for _ in range(10 * FULL):
        series.add(0.01)
    assert len(series.samples) < FULL, "memory is bounded, though nobody reads"


def test_who_finds_another_counting_goes_on() -> None:
    """Also in the same thread: a finalizer that runs while its thread counts must not wait for itself."""
    series = Series()
    with series._lock:
        for _ in range(2 * FULL):
            series.add(0.01)
    assert len(series.samples) == 2 * FULL
    assert series.read()[1] == 2 * FULL


def test_nothing_is_lost_among_threads() -> None:
    """Eight threads add, one reads all the time: readings only grow, and the last one has everything."""
    series, done = Series(), threading.Event()
    readings: list[int] = []

    def add(number: int) -> None:
        for index in range(5_000):
            series.add(BOUNDS[(index + number) % len(BOUNDS)])

    def read() -> None:
        while not done.is_set():
            counts, total, _ = series.read()
            assert counts[-1] == total
            readings.append(total)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    reader = threading.Thread(target=read)
    for thread in [reader, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    expected = Counter(BOUNDS[(index + number) % len(BOUNDS)] for number in range(8) for index in range(5_000))
    counts, total, seconds = series.read()
    assert total == 40_000
    assert counts == tuple(sum(times for bound, times in expected.items() if bound <= limit) for limit in BOUNDS)
    assert seconds == pytest.approx(sum(bound * times for bound, times in expected.items()))
    assert readings == sorted(readings)


class Interrupting(float):
    """A number that another call is recorded beside, when it is compared: in the middle of counting."""

    def __lt__(self, other: float) -> bool:
        self.interrupt()
        return float(self) < other


def counted(series: Series) -> int:
    return series.read()[1]


def careless(series: Series) -> int:
    """The negative control: what is counted is cleared, with all that has come meanwhile."""
    total = len(sorted(series.samples))
    series.samples.clear()
    return total


@pytest.mark.parametrize(("count", "lost"), [(counted, 0), (careless, 1)])
def test_what_comes_while_others_are_counted(count: Callable[[Series], int], lost: int) -> None:
    series = Series()
    left = [0.25]
    numbers = [Interrupting(0.5), Interrupting(0.125)]
    for number in numbers:
        number.interrupt = lambda: series.add(left.pop()) if left else None  # type: ignore[attr-defined]
        series.add(number)
    count(series)
    assert not left
    assert count(series) + (2 if count is careless else 0) == 3 - lost


def test_series_are_bounded() -> None:
    recorder = Recorder(2, limit=3)
    for name in "abcde":
        recorder.series((name, "x")).add(1.0)
    recorder.series(("a", "x")).add(1.0)
    assert {labels: series.read()[1] for labels, series in recorder} == {
        ("a", "x"): 2, ("b", "x"): 1, ("c", "x"): 1, ("other", ""): 2,
    }  # fmt: skip


def test_the_same_labels_are_the_same_series() -> None:
    recorder = Recorder(1)
    assert recorder.series(("a",)) is recorder.series(("a",))
    assert recorder.series(("a",)) is not recorder.series(("b",))


def test_a_child_process_begins_at_nothing() -> None:
    recorder = Recorder(1)
    series = recorder.series(("a",))
    for _ in range(FULL + 5):
        series.add(1.0)
    with recorder._lock, series._lock:  # of a thread of the parent
        pid = os.fork()
        if not pid:
            recorder.forked()
            series.add(2.0)
            read = [(labels, each.read()[1:]) for labels, each in recorder]
            os._exit(0 if read == [(("a",), (1, 2.0))] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert series.read()[1] == FULL + 5


class Collecting(str):
    """A label: while it is looked up, an abandoned flow is collected, which counts itself."""

    recorder: Recorder

    def __hash__(self) -> int:
        if self.recorder:
            recorder, self.recorder = self.recorder, None  # type: ignore[assignment]
            recorder.series(("abandoned",)).add(1.0)
        return 7


def test_a_flow_that_is_collected_while_its_thread_looks_one_up() -> None:
    recorder, label = Recorder(1), Collecting("a")
    label.recorder = recorder
    thread = threading.Thread(target=lambda: recorder.series((label,)).add(2.0), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for itself"
    assert sorted(labels for labels, _ in recorder) == [("a",), ("abandoned",)]
