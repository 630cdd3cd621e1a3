"""Events: counted, told, and nobody harmed by who listens."""

from __future__ import annotations

import threading

import pytest

from meshlib import events as module
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


def test_a_listener_that_fails_or_dawdles(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    events, heard = Events(), []
    times = iter([0.0, 0.0, 0.0, 5.0, 5.0])

    def broken(_: Event) -> None:
        raise ZeroDivisionError

    events.listen(broken)
    events.listen(heard.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
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
