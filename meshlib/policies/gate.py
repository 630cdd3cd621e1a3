"""Gates: a window, its lock, and the queue of those who wait for their turn; and gates by key."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, Protocol

from meshlib.policies.window import Window
from meshlib.threads import promise, rlock

TICK: Final = 1e-6
"""Seconds that whoever waits waits at least: less than this a clock may not tell."""

OVERDUE: Final = 0.1
"""Seconds after which somebody who may not wait any longer, and does not come, is in nobody's way."""

SHARED: Final = 64
"""Gates for the keys for which there is no room."""


class Lock(AbstractContextManager[Any], Protocol):
    """What :class:`threading.RLock` is, too."""

    def acquire(self) -> object: ...
    def release(self) -> None: ...


class Stuck(Exception):
    """The lock of a gate cannot be had: another process holds it and does not go on."""


class Turn:
    """Somebody who waits: until ``until``, and now until ``due`` (monotonic times), unless ``woken`` is resolved."""

    __slots__ = ("due", "until", "woken")

    def __init__(self, until: float) -> None:
        self.until = self.due = until
        self.woken: Future[None] = promise()


class Gate:
    """Lets calls pass as ``window`` allows; who has to wait passes in the order of coming.

    Nobody reserves a time: whoever has ``k`` before it passes when ``k + 1`` may, so that all is as exact as the window,
    however late anybody wakes up. What somebody who leaves would have used, the next ones have at once.
    """

    def __init__(self, window: Window, clock: Callable[[], float], lock: Callable[[], Lock] = rlock) -> None:
        # The lock is reentrant: a flow that nobody finished may be collected, and leave its queue, wherever this thread is.
        self.window, self._clock, self._make_lock = window, clock, lock
        self._take = window.take
        self.forked()

    def take(self) -> float:
        """0.0: pass. Else the seconds (float) until it would be one's turn."""
        self._acquire()  # half the price of "with"
        try:
            if not self._queue:
                return self._take(self._clock())
            self._drop_overdue()
            return self._take(self._clock(), len(self._queue))
        finally:
            self._release()

    def join(self, until: float) -> Turn:
        """Wait in the queue, at most until ``until``; :meth:`leave` must follow."""
        turn = Turn(until)
        with self._lock:
            self._queue.append(turn)
        return turn

    def go(self, turn: Turn) -> float:
        """The same as :meth:`take` for somebody in the queue; who passes has left it."""
        with self._lock:
            self._drop_overdue()
            now = self._clock()
            ahead = self._queue.index(turn) if turn in self._queue else len(self._queue)
            wait = self._take(now, ahead)
            if wait:
                wait = max(wait, TICK)
                turn.due = now + wait
                if turn.woken.done():
                    turn.woken = promise()
                return wait
            woken = self._out(turn)
        _wake(woken)
        return 0.0

    def leave(self, turn: Turn) -> None:
        """Out of the queue, if it is there still."""
        if turn not in self._queue:
            return
        try:
            with self._lock:
                woken = self._out(turn)
        except Stuck:
            return  # it is dropped when its time is over
        _wake(woken)

    def _out(self, turn: Turn) -> Future[None] | None:
        with suppress(ValueError):  # it was dropped
            self._queue.remove(turn)
        return self._early()

    def _early(self) -> Future[None] | None:
        """The first in the queue, if it may pass before it means to come: one before it has gone without passing."""
        if not self._queue:
            return None
        first, now = self._queue[0], self._clock()
        return first.woken if first.due > now + self.window.free_in(now) + TICK else None

    def _drop_overdue(self) -> None:
        """A blocked event loop may keep its callers from coming: nobody waits for them beyond their time."""
        now = self._clock()
        while self._queue and now > self._queue[0].until + OVERDUE:
            self._queue.popleft()

    def left(self) -> list[tuple[Window, int, float]]:
        """Each window, how many may pass now, and the seconds until it is one more."""
        with self._lock:
            now = self._clock()
            found = [(window, max(0, window.left(now) - len(self._queue))) for window in self.window.parts]
            return [(window, left, window.free_in(now, left)) for window, left in found]

    @property
    def waiting(self) -> int:
        """How many are in the queue."""
        return len(self._queue)

    def idle(self) -> bool:
        """True when a new gate would be the same."""
        return not self._queue and self.window.idle(self._clock())

    def forked(self) -> None:
        """In a child process (and at first): nobody waits."""
        self._lock = self._make_lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._queue: deque[Turn] = deque()


def _wake(woken: Future[None] | None) -> None:
    """Outside the lock: it runs what others want to be told."""
    if woken is not None:
        with suppress(InvalidStateError):  # somebody else was as quick
            woken.set_result(None)


class Gates:
    """A gate for each of ``keys`` keys, with a window of ``make``; the one not asked for longest makes room, once there is
    nothing to remember of it. Where there is no such one, new keys share gates: what a key is allowed is never exceeded, not
    even by whoever invents keys; it may be less.

    ``crowded`` is told when that begins.
    """

    def __init__(
        self, make: Callable[[], Window], clock: Callable[[], float], keys: int, crowded: Callable[[], object]
    ) -> None:
        self._make, self._clock, self._keys, self._crowded = make, clock, keys, crowded
        self._lock = rlock()
        self._gates: OrderedDict[Hashable, Gate] = OrderedDict()
        self._shared: dict[int, Gate] = {}

    def take(self, key: Hashable) -> tuple[Gate, float]:
        """The gate of ``key``, and what :meth:`Gate.take` says."""
        crowded = False
        with self._lock:  # of all its gates, so that none is dropped while somebody passes
            gate = self._gates.get(key)
            if gate is None:
                crowded = not self._shared
                gate = self._begin(key)
                crowded = crowded and bool(self._shared)
            else:
                self._gates.move_to_end(key)
            wait = gate.take()
        if crowded:
            self._crowded()
        return gate, wait

    def _begin(self, key: Hashable) -> Gate:
        place = hash(key) % SHARED
        shared = self._shared.get(place)
        if shared is not None and not shared.idle():
            return shared  # which may remember this key
        self._shared.pop(place, None)
        if len(self._gates) >= self._keys:
            oldest = next(iter(self._gates))
            if not self._gates[oldest].idle():
                return self._shared.setdefault(place, self._gate())
            del self._gates[oldest]
        return self._gates.setdefault(key, self._gate())

    def find(self, key: Hashable) -> Gate | None:
        """The gate of ``key``, if it has one of its own."""
        return self._gates.get(key)

    def _gate(self) -> Gate:
        return Gate(self._make(), self._clock, lambda: self._lock)

    def forked(self) -> None:
        """In a child process."""
        self._lock = rlock()
        for gate in (*self._gates.values(), *self._shared.values()):
            gate.forked()
