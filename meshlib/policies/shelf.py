"""Where answers are kept: by key, for a time, in bounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

from cachetools import TLRUCache

from meshlib.flow import FUNCTION, Call
from meshlib.threads import rlock

MOST: Final = 64
"""How many answers of the largest size there is room for, all together."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a function returned: to be given again as it is."""

    value: Any
    size: int = 1

    def answer(self, age: float) -> Any:  # noqa: ARG002 - a value does not say how old it is
        """The same object."""
        return self.value


@dataclass(frozen=True, slots=True)
class Item:
    """Something kept: ``thing`` gives the ``answer(age)`` of the monotonic time ``at``; it is fresh ``until``, and gone at
    ``end``. Without a thing it says that the answer is not to be kept."""

    thing: Any
    at: float
    until: float
    end: float

    def answer(self, now: float) -> Any:
        """The answer, for one caller."""
        return self.thing.answer(max(0.0, now - self.at))


class Shelf:
    """At most ``entries`` items, and of answers with a body as much as :data:`MOST` of ``largest`` bytes; who was not asked
    for longest goes first. Safe for threads; no lock is held while anything else is done."""

    def __init__(self, entries: int, largest: int, clock: Callable[[], float]) -> None:
        self._entries, self._clock = entries, clock
        self._room = max(MOST * largest, entries)
        self._empty()

    def _empty(self) -> None:
        # Reentrant: a flow that nobody finished may be collected wherever this thread is.
        self._lock = rlock()
        self._items: TLRUCache[Hashable, Item] = TLRUCache(self._room, lambda _key, item, _now: item.end, self._clock, _size)

    def get(self, key: Hashable) -> Item | None:
        """What is kept there, fresh or not."""
        with self._lock:
            return self._items.get(key)

    def put(self, key: Hashable, item: Item) -> None:
        """Keep ``item``, in place of what was there."""
        with self._lock:
            if _size(item) > self._room:
                self._items.pop(key, None)
                return
            self._items[key] = item
            while len(self._items) > self._entries:
                self._items.popitem()

    def __len__(self) -> int:
        with self._lock:
            self._items.expire()
            return len(self._items)

    def forked(self) -> None:
        """In a child process: what is there stays, unless a thread of the parent was just changing it."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._empty()


def _size(item: Item) -> int:
    return 1 if item.thing is None else max(1, item.thing.size)


def thing_of(call: Call, answer: Any, most: int) -> tuple[Any, float]:
    """What to keep of ``answer``, None if it cannot be; and the seconds for which it was kept already."""
    if call.method == FUNCTION:
        return Value(answer), 0.0
    from meshlib.answers import age_of, kept  # noqa: PLC0415 - functions need no engine

    return kept(answer, call, most), age_of(answer)
