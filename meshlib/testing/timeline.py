"""Virtual time for callers: it passes when everybody who is in a call waits for it.

A simulation of discrete events around real code. Who waits (for a pause of a policy, for a slow instance) says until when, and
goes to sleep; once nobody is busy, the clock jumps to the earliest of these times, the control plane does what is due on the
way, and that one goes on. Apps of providers are *busy* while they work, however long that takes in real time.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from meshlib.testing.clock import FakeClock
from meshlib.testing.plane import Plane

SETTLE: Final = 8
"""Turns of an event loop in which nobody begins to wait or to work, after which nobody is taken to be about to."""
POLL: Final = 0.002
"""Real seconds between two looks of a thread that waits for what other threads do."""

PATIENCE: Final = 5000
"""Such looks after which :meth:`Timeline.advance` goes on all the same."""


class Node:
    """Somebody who works or waits, on behalf of ``above``: whoever has others at it is not busy himself. What is done in the
    ``background`` lets no time pass: nobody would wait for it."""

    def __init__(self, above: Node | None, *, waiting: bool = False, background: bool = False) -> None:
        self.above, self.below, self.waiting = above, 0, waiting
        self.background: bool = background or (above is not None and above.background)

    def line(self) -> Iterator[Node]:
        """It, and whom it works for."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.above


@dataclass(order=True)
class _Waiter:
    due: float
    number: int
    node: Node = field(compare=False)
    wake: Callable[[], object] = field(compare=False)
    loop: asyncio.AbstractEventLoop | None = field(compare=False)
    woken: bool = field(default=False, compare=False)
    ended: bool = field(default=False, compare=False)


_current: ContextVar[Node | None] = ContextVar("meshlib.testing.node", default=None)


class Timeline:
    """Time of one mesh: ``clock`` tells it, ``plane`` is the control plane that lives in it."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.plane = Plane(self.clock, lambda: self._early)
        self._early = False  # somebody was woken before his time, so it must not pass
        self._waiters: list[_Waiter] = []
        self._nodes: set[Node] = set()
        self._numbers = count()
        self._lock = threading.RLock()
        self._turning = threading.RLock()
        self._frozen: int | None = None  # the thread that wants to let it pass itself
        self._advancing = False
        self._changes = 0

    # -- who is busy

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Time does not pass meanwhile, unless those who do the work wait for it."""
        node = self.open()
        token = _current.set(node)
        try:
            yield
        finally:
            _current.reset(token)
            self.close(node)

    def open(self, *, waiting: bool = False, apart: bool = False) -> Node:
        """Somebody more, at work for whoever works here, or ``apart`` from him, in the background."""
        node = Node(None if apart else _current.get(), waiting=waiting, background=apart)
        with self._lock:
            self._nodes.add(node)
            if node.above is not None:
                node.above.below += 1
        return node

    def close(self, node: Node) -> None:
        """It is done."""
        with self._lock:
            self._nodes.discard(node)
            if node.above is not None:
                node.above.below -= 1
        self._changed()

    def adopt(self, node: Node) -> None:
        """What is done in this context from now on is done by ``node``."""
        _current.set(node)

    @property
    def idle(self) -> bool:
        """True when nobody works."""
        with self._lock:
            return all(node.waiting or node.below for node in self._nodes)

    def works(self, node: Node) -> bool:
        """False once ``node``, and all that is done for it, is done or waits."""
        with self._lock:
            return any(not each.waiting and not each.below and node in each.line() for each in self._nodes)

    # -- waiting

    def wait(self, seconds: float, future: Future[Any] | None = None) -> bool:
        """Let ``seconds`` pass in this thread, or less when ``future`` is done before; True when it is."""
        done = threading.Event()
        with self._waiting(seconds, done.set, None, future) as waiter:
            alone = asyncio._get_running_loop() is not None  # tasks of this thread's loop cannot go on: not to be waited for
            while not done.is_set():
                if self._frozen == threading.get_ident():
                    raise RuntimeError("time is frozen by this thread, which now waits for it: nobody could let it pass")
                if waiter.node.background or not self._turn(alone=alone):
                    done.wait(POLL)
        if waiter.ended:
            raise RuntimeError("the mesh was closed while this waited in the background")
        return future is not None and future.done()

    async def await_(self, seconds: float, future: Future[Any] | None = None) -> bool:
        """The same in this task."""
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def go_on() -> None:
            if not woken.done():
                woken.set_result(None)

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(go_on)

        with self._waiting(seconds, wake, loop, future):
            self._changed()
            await woken
        return future is not None and future.done()

    @contextmanager
    def _waiting(
        self, seconds: float, wake: Callable[[], object], loop: asyncio.AbstractEventLoop | None, future: Future[Any] | None
    ) -> Iterator[_Waiter]:
        self.settle()
        node = self.open(waiting=True)
        waiter = _Waiter(self.clock() + max(0.0, seconds), next(self._numbers), node, wake, loop)
        with self._lock:
            self._waiters.append(waiter)
        try:
            if future is not None:
                future.add_done_callback(lambda _: self._wake(waiter, early=True))
            yield waiter
        finally:
            with self._lock:
                waiter.woken = True
                self._waiters = [each for each in self._waiters if each is not waiter]
            self.close(node)

    def _wake(self, waiter: _Waiter, *, early: bool = False) -> None:
        with self._lock:
            if waiter.woken:
                return
            waiter.woken, waiter.node.waiting = True, False
            self._waiters.remove(waiter)
            self._early = self._early or early
        waiter.wake()

    def end(self) -> None:
        """The mesh is closed: threads that wait in the background give up."""
        for waiter in [each for each in self._waiters if each.node.background and each.loop is None]:
            waiter.ended = True
            self._wake(waiter)

    # -- passing

    def settle(self) -> None:
        """Have the control plane do what it can do now."""
        self.plane.drive()

    def _turn(self, *, alone: bool = False, until: float = math.inf, forced: bool = False) -> bool:
        """Let time pass until the first of those who wait goes on, if nobody is busy; False when nobody did."""
        with self._turning:
            with self._lock:
                held = self._frozen is not None or (self._advancing and not alone)
                if not forced and (held or not (alone or self.idle)):
                    return False
                if not forced and all(each.node.background for each in self._waiters):
                    return False
                first = min(self._waiters, default=None)
                self._early = False  # under the lock: whoever is woken from here on keeps time from passing
            if first is None or first.due > until or first.due == math.inf:
                return False
            if self._to(first.due):
                self._wake(first)
            return True

    def _to(self, due: float) -> bool:
        """Let time pass until then; False when somebody was woken before that."""
        self.plane.drive(due)
        if not self._early:
            self.clock.now = max(self.clock.now, due)
        return not self._early

    def _to_the_end(self, target: float) -> bool:
        """The same where nobody waits for a time before ``target``."""
        with self._turning:
            self._early = False
            return self._to(target)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; whoever waits goes on at his time."""
        if seconds < 0:
            raise ValueError(f"{seconds} s: a clock does not go backwards")
        if asyncio._get_running_loop() is not None and any(each.loop for each in self._waiters):
            raise RuntimeError("tasks wait for this time, and can only go on while yours awaits: use `await mesh.aadvance(…)`")
        target = self.clock() + seconds
        self.settle()
        while self._turn(until=target, forced=True) or not self._to_the_end(target):
            self._quiet()
        self._quiet()

    def _quiet(self) -> None:
        """Give threads that go on the real time to wait again."""
        mine = list(current.line()) if (current := _current.get()) is not None else []
        for _ in range(PATIENCE):
            with self._lock:
                works = any(not each.waiting and not each.below and each not in mine for each in self._nodes)
            if not works or asyncio._get_running_loop() is not None:
                return
            time.sleep(POLL)

    async def aadvance(self, seconds: float) -> None:
        """The same; tasks go on, each at its time, before more of it passes."""
        if seconds < 0:
            raise ValueError(f"{seconds} s: a clock does not go backwards")
        target = self.clock() + seconds
        self._advancing = True
        try:
            await self._calm()
            while self._turn(until=target, forced=True) or not self._to_the_end(target):
                await self._calm()
        finally:
            self._advancing = False
            self._changed()
        await self._calm()

    async def _calm(self) -> None:
        self.settle()
        turns, seen = 0, self._changes
        while turns < SETTLE:
            await asyncio.sleep(0)
            turns, seen = (turns + 1, seen) if seen == self._changes else (0, self._changes)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within it time passes by :meth:`advance` and :meth:`aadvance` only."""
        before, self._frozen = self._frozen, threading.get_ident()
        try:
            yield
        finally:
            self._frozen = before
            self._changed()

    def _changed(self) -> None:
        with self._lock:
            self._changes += 1
            seen, loops = self._changes, {each.loop for each in self._waiters if each.loop is not None}
        for loop in loops:
            with suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(self._later, loop, seen, SETTLE)

    def _later(self, loop: asyncio.AbstractEventLoop, seen: int, turns: int) -> None:
        if seen != self._changes:
            return
        if turns:
            loop.call_soon(self._later, loop, seen, turns - 1)
        else:
            self._turn()
