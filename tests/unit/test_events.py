"""Events: counted, told, and nobody harmed by who listens."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from meshlib.events import Event, Events


def test_counted_and_told() -> None:
    events, heard = Events(), []
    end = events.listen(heard.append)
    events.emit("retry.again", "orders", "fetch", attempt=2)
    end()
    events.emit("retry.again", "orders", "fetch")
    events.emit("retry.exhausted")
    assert heard == [Event("retry.again", "orders", "fetch", {"attempt": 2})]
    assert events.counts() == {("retry.again", "orders", "fetch"): 2, ("retry.exhausted", "", ""): 1}


def test_a_listener_that_fails_or_dawdles(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 0.0, 0.0, 5.0])
    events, heard = Events(clock=lambda: next(times)), []

    def broken(_: Event) -> None:
        raise ZeroDivisionError

    events.listen(broken)
    events.listen(heard.append)
    events.emit("x.y")
    assert len(heard) == 1
    assert "a listener failed" in caplog.text
    assert "took 5.0 s" in caplog.text


def test_no_count_is_lost_between_threads() -> None:
    events = Events()
    threads = [threading.Thread(target=lambda: [events.emit("a.b") for _ in range(2000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events.counts() == {("a.b", "", ""): 16_000}


def test_a_child_of_a_thread_that_was_counting() -> None:
    """The hook counts, and what a mesh calls where no hook ran; with neither, the child waits for ever."""
    events = Events()
    with events._lock:  # of a thread of the parent
        pid = os.fork()
        if not pid:
            signal.alarm(10)
            events.emit("a.b")
            os._exit(0 if events.counts() == {("a.b", "", ""): 1} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Collecting(str):
    """A name: while it is counted, an abandoned flow is collected, which says something."""

    events: Events | None

    def __hash__(self) -> int:
        events, self.events = self.events, None
        if events is not None:
            events.emit("abandoned.flow")
        return 7


def test_a_flow_that_is_collected_while_its_thread_counts() -> None:
    events, name = Events(), Collecting("orders")
    name.events = events
    thread = threading.Thread(target=events.emit, args=("a.b", name), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for itself"
    assert sum(events.counts().values()) == 2


def test_names_that_anybody_may_think_up_are_bounded() -> None:
    """Of a transport that is mounted for all hosts, every host that somebody names is a service."""
    events = Events(limit=3)
    for name in "abcde":
        events.emit("retry.again", name, "get")
    events.emit("retry.again", "a", "get")
    assert events.counts() == {
        ("retry.again", "a", "get"): 2, ("retry.again", "b", "get"): 1, ("retry.again", "c", "get"): 1,
        ("retry.again", "other", ""): 2,
    }  # fmt: skip
