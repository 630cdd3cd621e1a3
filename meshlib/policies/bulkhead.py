"""How many calls at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Final, TypeAlias

from meshlib.errors import BulkheadFull, ConfigError
from meshlib.flow import Call, Flow, Layer, Next, Wait
from meshlib.policies.base import Policy, Site
from meshlib.policies.forks import on_fork
from meshlib.threads import promise

MOST: Final = 1_000_000

Free: TypeAlias = deque[None]


@dataclass(frozen=True)
class bulkhead(Policy):  # noqa: N801 - as users write it
    """At most ``limit`` calls at once, threads and tasks together: ``@bulkhead(20, wait=0.5)``. A call holds its place until
    its answer is read or closed.

    Whoever finds none waits for it up to ``wait`` seconds (and the call's deadline), in the order of coming, and gets
    :class:`~meshlib.errors.BulkheadFull` else. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "bulkhead"
    refuses: ClassVar[bool] = True

    limit: int
    _: KW_ONLY
    wait: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.limit, int) and 1 <= self.limit <= MOST):
            raise ConfigError(
                "bulkhead(limit=)", f"{self.limit!r:.40} is not a number from 1 to {MOST}", example="bulkhead(20)"
            )
        if not (isinstance(self.wait, (int, float)) and 0 <= self.wait < 1e6):
            raise ConfigError("bulkhead(wait=)", f"{self.wait!r:.40} is not a number of seconds", example="wait=0.5")

    def bind(self, site: Site) -> Layer:
        return Bulkhead(self, site)


class Waiter:
    """Somebody who waits for a place: until ``woken`` is resolved. Whoever takes the ``claim`` settles whether he gets one: who
    hands it over, once it is his ``place``, or himself, who waits no more. So nobody has to wait for the other, who may be the
    same thread: an abandoned flow is collected in the middle of anything."""

    __slots__ = ("claim", "place", "woken")

    def __init__(self) -> None:
        self.woken: Future[None] = promise()
        self.claim = deque([None])
        self.place: Place | None = None


class Permits:
    """Places, and who waits for one. There is no lock: a place is given back wherever an answer is collected that nobody
    closed, in a thread that might hold it. Taking from and putting into a deque is atomic; whoever puts in a place or a waiter
    looks then whether there is a match (:meth:`_match`), so none is missed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.forked()

    def forked(self) -> None:
        """In a child process (and at first): the calls under way are the parent's."""
        self._free = deque([None] * self._limit)
        self._waiters: deque[Waiter] = deque()

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return len(self._free)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiters)

    def take(self) -> Place | None:
        """A place, if there is one and nobody waits for it."""
        if self._waiters:
            return None
        free = self._free
        try:
            free.pop()
        except IndexError:
            return None
        return Place(self, free)

    def join(self) -> Waiter:
        """Wait for a place; :meth:`leave` must follow."""
        waiter = Waiter()
        self._waiters.append(waiter)
        self._match()
        return waiter

    def leave(self, waiter: Waiter) -> Place | None:
        """Wait no more. The place, if it has come: it is to be given back."""
        try:
            waiter.claim.pop()
        except IndexError:
            return waiter.place
        with suppress(ValueError):  # somebody has found it, and goes on to the next one
            self._waiters.remove(waiter)
        return None

    def give(self, free: Free) -> None:
        """A place is free; of the parent's, in a child process, it is not."""
        if free is self._free:
            free.append(None)
            if self._waiters:  # who joins later finds it
                self._match()

    def _match(self) -> None:
        free = self._free
        while self._waiters and free:
            try:
                free.pop()
            except IndexError:
                return  # whoever was quicker gives it back one day, and looks
            if not self._hand_over(free):
                free.append(None)

    def _hand_over(self, free: Free) -> bool:
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            return False
        waiter.place = Place(self, free)
        try:
            waiter.claim.pop()
        except IndexError:  # he has left, and so there is nobody for the place
            return False
        waiter.woken.set_result(None)
        return True


class Place:
    """One that is taken: called, it is given back, once."""

    __slots__ = ("_free", "_permits")

    def __init__(self, permits: Permits, free: Free) -> None:
        self._permits, self._free = permits, [free]

    def __call__(self) -> None:
        try:
            free = self._free.pop()
        except IndexError:  # it was before
            return
        self._permits.give(free)


@dataclass(frozen=True)
class BulkheadState:
    """``free`` places of ``limit``, and how many calls are ``waiting`` for one."""

    limit: int
    free: int
    waiting: int

    def __str__(self) -> str:
        return f"{self.free} of {self.limit} places free, {self.waiting} waiting"


class Bulkhead:
    """The layer."""

    def __init__(self, policy: bulkhead, site: Site) -> None:
        self._policy, self._site = policy, site
        self.permits = Permits(policy.limit)
        on_fork(self.permits)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        place = self.permits.take()
        if place is None:
            place = yield from self._wait(call)
        try:
            answer = yield from proceed(call)
        except BaseException:  # a layer above may repeat the call: it is not over, but this attempt is
            place()
            raise
        call.on_close(place)
        return answer

    def _wait(self, call: Call) -> Generator[Wait, Any, Place]:
        begun = self._site.clock()
        patience = self._policy.wait if call.deadline is None else min(self._policy.wait, call.deadline - begun)
        if patience <= 0:
            raise self._refused(call)
        waiter = self.permits.join()
        try:
            yield Wait(waiter.woken, patience)
        except BaseException:
            place = self.permits.leave(waiter)
            if place is not None:
                place()
            raise
        place = self.permits.leave(waiter)
        if place is None:
            raise self._refused(call)
        self._site.emit("bulkhead.waited", seconds=self._site.clock() - begun)
        return place

    def _refused(self, call: Call) -> BulkheadFull:
        limit, site = self._policy.limit, self._site
        site.emit("bulkhead.refused", limit=limit)
        where = f"{site.service}.{site.method}" if site.method else site.service or str(call.target)
        waited = f", and none ended within {self._policy.wait:g} s" if self._policy.wait else ""
        return BulkheadFull(f"{limit} calls of {where} are under way, no more are allowed{waited}", service=call.target)

    def explain(self, call: Call) -> BulkheadState:  # noqa: ARG002 - the same for all
        """How many places there are."""
        return BulkheadState(self._policy.limit, self.permits.free, self.permits.waiting)
