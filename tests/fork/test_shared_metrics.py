"""The counts of several processes of one server: each in its slot, and sums that never go back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from meshlib.metrics.families import Distribution, Family, Sample
from meshlib.metrics.shelf import Shelf, summed


def families(count: int) -> tuple[Family, ...]:
    """What a process tells that has counted so much of everything."""
    seconds = Distribution(((1.0, count), (2.0, 2 * count)), 3 * count, 0.5 * count)
    return (
        Family("calls", "counter", "", samples=(Sample({"a": "x"}, count),)),
        Family("seconds", "histogram", "", "s", (Sample({}, seconds),)),
        Family("active", "updowncounter", "", samples=(Sample({}, count),)),
        Family("known", "gauge", "", samples=(Sample({}, count),)),
    )


def told(found: tuple[Family, ...]) -> tuple[Any, ...]:
    values = {family.name: [each.value for each in family.samples] for family in found}
    ((calls,), (seconds,), (active,), (known,)) = (values[name] for name in ("calls", "seconds", "active", "known"))
    return calls, seconds.count, active, known


class Process:
    """One that counts: a child that does as it is told."""

    def __init__(self, directory: Path) -> None:
        self._pipe, theirs = Pipe()
        self.pid = os.fork()
        if not self.pid:
            self._pipe.close()
            try:
                serve(Shelf(directory), theirs)
            finally:
                os._exit(0)
        theirs.close()

    def keep(self, count: int) -> None:
        self._pipe.send(("keep", count))
        self._pipe.recv()

    def together(self, count: int) -> tuple[Any, ...]:
        self._pipe.send(("together", count))
        return self._pipe.recv()  # type: ignore[no-any-return]

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            self.pid = 0


def serve(shelf: Shelf, pipe: Connection) -> None:
    while True:
        what, count = pipe.recv()
        if what == "keep":
            pipe.send(shelf.keep(families(count)))
        else:
            pipe.send(told(shelf.together(families(count))))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    made: list[Process] = []

    def start() -> Process:
        made.append(Process(tmp_path / "metrics"))
        return made[-1]

    yield start
    for each in made:
        each.kill()


def test_what_is_counted_is_added_and_what_is_not_is_not(start: Callable[[], Process]) -> None:
    one, two, three = start(), start(), start()
    one.keep(1)
    two.keep(10)
    assert three.together(100) == (111, 333, 111, 100)
    one.keep(5)
    assert three.together(100) == (115, 345, 115, 100)
    assert two.together(10) == (115, 345, 115, 10)


def test_one_that_is_killed_and_its_successor(start: Callable[[], Process], tmp_path: Path) -> None:
    one, two = start(), start()
    one.keep(1)
    two.keep(10)
    one.kill()
    assert two.together(10) == (11, 33, 10, 10), "nothing of it is under way any more"
    three = start()
    assert three.together(100) == (111, 333, 110, 100)
    assert two.together(10) == (111, 333, 110, 10)
    three.kill()
    four = start()
    four.keep(1000)
    assert two.together(10)[0] == 1111
    assert len(list((tmp_path / "metrics").glob("*.json"))) == 2, "as many slots as lived at once"


def test_the_first_of_all_begins_at_nothing(start: Callable[[], Process]) -> None:
    one, two = start(), start()
    one.keep(1)
    two.keep(10)
    one.kill()
    two.kill()
    assert start().together(100) == (100, 300, 100, 100)


def test_a_forked_child_has_a_slot_of_its_own(start: Callable[[], Process], tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "metrics")
    shelf.keep(families(1))
    pid = os.fork()
    if not pid:
        shelf.forked()
        os._exit(0 if told(shelf.together(families(10)))[0] == 11 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert told(shelf.together(families(2)))[0] == 12, "the child's closing has cost the parent nothing"
    assert start().together(100)[0] == 112


def test_a_file_that_cannot_be_read_costs_its_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(tmp_path / "metrics")
    shelf.keep(families(1))
    (tmp_path / "metrics" / "7.json").write_bytes(b"{")
    assert told(shelf.together(families(1)))[0] == 1
    assert "7.json are lost" in caplog.text


def test_a_directory_of_others(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir(mode=0o777)
    (tmp_path / "metrics").chmod(0o777)
    with pytest.raises(ValueError, match="can be written to by others"):
        Shelf(tmp_path / "metrics").keep(families(1))


def test_sums() -> None:
    assert told(summed([families(1), families(2)])) == (3, 9, 3, 3)
    mixed = summed([(Family("a", "counter", "", samples=(Sample({"x": "1"}, 1),)),),
                    (Family("a", "counter", "", samples=(Sample({"x": "2"}, 2),)), Family("b", "gauge", ""))])  # fmt: skip
    assert [(family.name, [each.value for each in family.samples]) for family in mixed] == [("a", [1, 2]), ("b", [])]
