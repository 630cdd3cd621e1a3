"""Counts that are left for other processes, by several threads of one. That processes add up is shown with real ones."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from meshlib.metrics.families import Family, Sample
from meshlib.metrics.shared import Shared
from tests.servers.base import eventually
from tests.unit.wiring import Contended


def calls(count: int) -> tuple[Family, ...]:
    return (Family("calls", "counter", "Calls.", "", (Sample({}, count),)),)


@pytest.mark.parametrize("first", ["keep", "together"])
def test_what_was_counted_earlier_is_not_left_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """One is asked for the counts while it leaves them, as it does every few seconds."""
    lock, asked, left = Contended(), list[int](), list[Any]()

    def counted() -> tuple[Family, ...]:
        asked.append(len(asked))
        mine = calls(asked[-1])
        if len(asked) == 1:
            other.start()
            eventually(lambda: lock.waited > 0 or not other.is_alive())
        return mine

    shared = Shared(tmp_path / "metrics", counted)
    other = threading.Thread(target=shared.together)
    keep = shared._shelf._keep
    monkeypatch.setattr(shared, "_lock", lock, raising=False)
    monkeypatch.setattr(shared._shelf, "_keep", lambda families: (left.append(families), keep(families)))
    getattr(shared, first)()
    other.join(30)
    assert left == [calls(0), calls(1)]
