"""What must hold of a view, whatever befalls its registry.

**Of everything listed and published**: instances are ordered and unique by id; each one was registered under this service at some time,
exactly so; those that are no suspects are together what the registry listed at one moment, no longer ago than the backend
promises; nobody in maintenance can be picked, and nobody is lost between snapshot and fleet; the snapshot counts as confirmed
no later than the registry last answered; time does not run backwards in it.

**At any time**: ``live`` is false from a second after the registry began to refuse, and while nothing has been answered for
longer than a client takes to notice.

**Convergence.** A history ends when every fault does: *healed*. *Contact* is when the view's client has a question with a
registry that is well: at once when one that was held survives, else with its next question, which must come within the
backend's ``blind`` time (what the client needs to notice a dead connection, and :data:`BACKOFF_CAP`). One second after contact,
and from then on, the view is live, and what it holds beside suspects is what the registry listed at some moment of the last
second. Suspects are settled :data:`SUSPECTS_EVERY` seconds later: those that are left are running, and unlisted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from meshlib.backends.base import Listing, Registry
from meshlib.balance.fleet import Fleet
from meshlib.discovery.follow import SUSPECTS_EVERY, Follower, Surroundings
from meshlib.discovery.merge import Known
from meshlib.discovery.probe import Probes
from meshlib.discovery.view import View
from meshlib.model import ServiceUrl, Status
from meshlib.settings import Settings
from meshlib.testing import FakeClock, run_virtual
from tests.model.history import Step
from tests.model.ledger import Listed
from tests.model.subjects import LOUD, SERVICES, Subject

CONVERGED = 1.0
"""Seconds from contact to convergence."""
WALL = 1_700_000_000.0
EPSILON = 1e-3

Make = Callable[[ServiceUrl, FakeClock, random.Random], Subject]


class Violation(AssertionError):
    """What must hold did not."""


def must(holds: object, what: str) -> None:
    """Raise :class:`Violation` unless it ``holds``."""
    if not holds:
        raise Violation(f"at {asyncio.get_running_loop().time() - 1000:.3f}: {what}")


@dataclass
class Outcome:
    """``published`` snapshots; seconds from healing to ``contact`` and from there to ``convergence``."""

    published: int
    contact: float
    convergence: float


class CheckedView(View):
    """Has everything that is published looked at."""

    def __init__(self, check: Callable[[Known | None, Known], None], *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._check = check

    def publish(self, known: Known) -> None:
        before = self.known
        super().publish(known)
        self._check(before, known)


class Looked:
    """A registry whose listings are looked at before the view sees them."""

    def __init__(self, inner: Registry, look: Callable[[Listing], None]) -> None:
        self._inner, self._look = inner, look

    async def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        async with aclosing(self._inner.watch(service)) as listings:  # type: ignore[type-var]
            async for listing in listings:
                self._look(listing)
                yield listing


class Checker:
    """A view that follows ``subject``, and what must hold of it."""

    def __init__(self, subject: Subject, clock: Callable[[], float], rng: random.Random) -> None:
        self.subject, self.clock = subject, clock
        self.published = 0
        self.violation: Violation | None = None
        self.fleet = Fleet(subject.service)
        self.view = CheckedView(
            self._published, subject.service, self.fleet, lambda _: None, timeout=5.0, clock=clock, wall=self.wall
        )
        settings = Settings(registry="memory://", watch_idle=86_400)
        probes = Probes(subject.reach, subject.reach)
        around = Surroundings(settings, self._registry, probes, None, clock, self.wall, rng.random)
        self.task = asyncio.create_task(Follower(self.view, around, self.view.begin()).run())

    async def _registry(self) -> Any:
        return Looked(self.subject.registry, self._listing)

    def wall(self) -> float:
        return WALL + self.clock()

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    # -- of everything published

    def _listing(self, listing: Listing) -> None:
        ids = [one.id for one in listing.instances]
        if ids != sorted(set(ids)):
            self.violation = self.violation or Violation(f"a listing that is not ordered and unique: {ids}")

    def _published(self, before: Known | None, known: Known) -> None:
        self.published += 1
        try:
            self._well_formed(known)
            self._true(before, known)
            self._pickable(known)
        except Violation as problem:  # a follower survives whatever is raised in it
            self.violation = self.violation or problem

    def _well_formed(self, known: Known) -> None:
        ids = [one.id for one in known.snapshot.instances]
        must(ids == sorted(set(ids)), f"not ordered and unique: {ids}")
        must(known.snapshot.suspects <= set(ids), f"suspects that are not there: {known.snapshot.suspects - set(ids)}")
        for one in known.snapshot.instances:
            registered = (other for other in self.subject.ledger.ever.values() if other.id == one.id)
            maintained = one.status is Status.MAINTENANCE  # an order of the registry's, besides what was registered
            same = any(one == other or (maintained and one.key == other.key) for other in registered)
            must(same, f"never registered: {one}")

    def _true(self, before: Known | None, known: Known) -> None:
        confirmed = known.snapshot.confirmed
        since = before.snapshot.confirmed if before else WALL
        must(since - EPSILON <= confirmed <= self.wall() + EPSILON, f"confirmed at {confirmed}, before {since}")
        must(known.snapshot.revision.isdigit(), f"revision {known.snapshot.revision!r}")
        when = confirmed - WALL
        must(when <= self.subject.answered() + EPSILON, f"confirmed at {when}, answered at {self.subject.answered()}")
        oldest = when - self.subject.bound(before is None) - EPSILON
        states = self.subject.ledger.between(oldest, when + EPSILON)
        must(self._listed() in list(states), f"not what the registry listed since {oldest}: {_named(self._listed())}")

    def _listed(self) -> Listed:
        snapshot = self.view.snapshot
        assert snapshot is not None
        return tuple(one for one in snapshot.instances if one.id not in snapshot.suspects)

    def _pickable(self, known: Known) -> None:
        tiers = self.fleet.tiers
        found = [end.instance for end in (*tiers.prime, *tiers.reserve, *tiers.ejected)]
        wanted = [one for one in known.snapshot.instances if one.status is not Status.MAINTENANCE]
        must(sorted(found, key=lambda one: one.id) == wanted, f"{_named(found)} can be picked, not {_named(wanted)}")
        trusted = {end.instance.id for end in tiers.prime}
        must(not trusted & known.snapshot.suspects, f"suspects that are trusted: {trusted & known.snapshot.suspects}")

    # -- at any time

    def look(self) -> None:
        """Raise what was wrong up to now, or is."""
        if self.violation:
            raise self.violation
        must(not self.task.done(), "the follower ended")
        lost = self.subject.lost()
        refused = lost is not None and self.clock() > lost + LOUD
        silent = self.clock() > self.subject.answered() + self.subject.blind
        must(
            not (self.view.live and (refused or silent)), f"live though nothing answers since {lost or self.subject.answered()}"
        )

    # -- convergence

    async def converge(self) -> tuple[float, float]:
        """Everything is well: seconds to contact, and from there to convergence."""
        healed = self.clock()
        self.subject.healed()
        while (contact := self.subject.contact()) is None or not self._converged():
            self.look()
            must(contact is not None or self.clock() <= healed + self.subject.blind, "it does not ask")
            late = contact is not None and self.clock() > contact + CONVERGED
            must(not late, f"not converged: {self.shown}, listed {_named(self.subject.ledger.now)}")
            await asyncio.sleep(0.02)
        return contact - healed, max(0.0, self.clock() - contact)

    def _converged(self) -> bool:
        now = self.clock()
        return self.view.live and self._listed() in list(self.subject.ledger.between(now - CONVERGED, now))

    async def stay(self) -> None:
        """It stays converged, and suspects are settled."""
        for _ in range(12):
            await asyncio.sleep((SUSPECTS_EVERY + CONVERGED) / 12)
            self.look()
            must(self._converged(), f"no longer converged: {self.shown}, listed {_named(self.subject.ledger.now)}")
        known = self.view.known
        assert known is not None
        # Not one whose lease has only just run out: there was no time yet to look after it.
        old = {key for key, since in known.since.items() if since <= self.clock() - SUSPECTS_EVERY}
        suspects = [one for one in known.snapshot.instances if one.id in old]
        dead = [one.id for one in suspects if not await self.subject.reach(one)]
        must(not dead, f"suspects that nobody answers for: {dead}")

    @property
    def shown(self) -> str:
        """What the view holds, suspects with a question mark, and whether it is live."""
        snapshot = self.view.snapshot
        shown = _named(snapshot.instances, snapshot.suspects) if snapshot else "nothing"
        return f"{shown} ({'live' if self.view.live else self.view.problem})"


def _named(instances: Sequence[Any], suspects: Any = ()) -> str:
    named = (f"{one.id}{'?' * (one.id in suspects)}/{one.generation}/{one.status.value}" for one in instances)
    return f"[{' '.join(named)}]"


async def follow(
    subject: Subject, steps: Sequence[Step], clock: FakeClock, rng: random.Random, tell: Callable[[str], None]
) -> Outcome:
    """Play ``steps`` on ``subject`` while a view follows it; raises :class:`Violation`."""
    await subject.open()
    checker = Checker(subject, clock, rng)
    try:
        for step in steps:
            await asyncio.sleep(step.pause)
            checker.look()
            await subject.do(step.action, step.who, step.how)
            tell(
                f"{clock() - 1000:8.3f}  {step.action}({step.who}, {step.how}): {checker.shown}, listed {_named(subject.ledger.now)}"
            )
            checker.look()
        await subject.heal()
        tell(f"{clock() - 1000:8.3f}  healed: {checker.shown}, listed {_named(subject.ledger.now)}")
        contact, convergence = await checker.converge()
        await checker.stay()
        return Outcome(checker.published, contact, convergence)
    finally:
        await checker.close()
        await subject.close()


def play(make: Make, seed: int, steps: Sequence[Step], tell: Callable[[str], None] = lambda _: None) -> Outcome:
    """One history on a virtual loop, the same for the same arguments."""
    rng, clock = random.Random(seed), FakeClock()
    subject = make(rng.choice(SERVICES), clock, rng)
    logging.disable(logging.CRITICAL)  # a history is full of warnings that nobody reads
    try:
        return run_virtual(follow(subject, steps, clock, rng, tell), clock=clock)
    finally:
        logging.disable(logging.NOTSET)
