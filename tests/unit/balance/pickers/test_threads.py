"""Many threads pick while instances come, go, are ejected and come back."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.layer import Balance
from meshlib.balance.pickers import ConsistentHash, ModHash, Picker, Sticky, Subset
from tests.unit.balance.pickers.naive import by_path
from tests.unit.flows import FakeSource, call_to, fleet, update

THREADS, CHANGES, PICKS = 16, 30, 30
NAMES = [f"orders-{number:02d}" for number in range(40)]
PICKERS = {
    "mod_hash": ModHash(by_path),
    "consistent_hash": ConsistentHash(by_path, points=20),
    "subset": Subset(size=5, inner=ConsistentHash(by_path, points=20)),
    "sticky": Sticky(by_path, entries=50),
}


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads are switched as often as it goes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Storm:
    """One thread changes the fleet, the others pick. ``wrong`` is what went wrong; ``gone`` were dropped before a pick began,
    so that none of them may be its result."""

    def __init__(self, picker: Picker) -> None:
        self.fleet = fleet(*NAMES[:20])
        self.balance = Balance(FakeSource(self.fleet), picker)
        self.gone: frozenset[Endpoint] = frozenset()
        self.wrong: list[object] = []
        self.over = False
        self.picks = [0] * THREADS

    def pick(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.over:
            gone = self.gone
            try:
                endpoint = self.balance.pick(call_to(b"%d" % chance.randrange(200)))
                endpoint.in_flight.add(attempt := object())
                if chance.random() < 0.8:
                    endpoint.release(attempt)
            except Exception as problem:
                self.wrong.append(problem)
            else:
                self.picks[seed] += 1
                if endpoint in gone:
                    self.wrong.append(f"{endpoint} was no longer listed")

    def change(self, chance: random.Random) -> None:
        before = self.fleet.tiers.members
        if chance.random() < 0.5:
            update(self.fleet, *sorted(chance.sample(NAMES, chance.randrange(1, 30))))
            self.gone |= set(before) - set(self.fleet.tiers.members)
        else:
            one = chance.choice(before)
            if one.ejected is None:
                self.fleet.eject(one)
            else:
                self.fleet.restore(one, one.ejected)

    def rage(self, enough: Callable[[], bool]) -> None:
        """Until ``enough`` has happened, in at least :data:`CHANGES` changes."""
        threads = [threading.Thread(target=self.pick, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        chance = random.Random(99)
        try:
            give_up = time.monotonic() + 120.0
            for number in itertools.count():
                self.change(chance)
                if time.monotonic() > give_up or (number >= CHANGES and enough()):
                    break
        finally:
            self.over = True
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("picker", PICKERS.values(), ids=PICKERS)
@pytest.mark.usefixtures("hasty")
def test_no_thread_is_given_what_is_not_listed(picker: Picker) -> None:
    storm = Storm(picker)
    storm.rage(lambda: min(storm.picks) >= PICKS)
    assert storm.wrong == []
    assert min(storm.picks) >= PICKS


@pytest.mark.usefixtures("hasty")
def test_the_control_a_picker_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    storm = Storm(ModHash(by_path))
    monkeypatch.setattr(storm.fleet, "_tell", lambda: None)
    storm.rage(lambda: bool(storm.wrong))
    assert storm.wrong, "it goes on choosing those that it knows"
