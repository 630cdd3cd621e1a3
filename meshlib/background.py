"""Work that nobody waits for, in bounds: what would be too much at once is not begun."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final

from meshlib.threads import DaemonExecutor

log = logging.getLogger(__name__)

AT_ONCE: Final = 64
"""Pieces of work under way or waiting for a thread, threads and tasks apart."""
THREADS: Final = 8


class Background:
    """Runs functions in a few daemon threads and coroutines as tasks of the running loop, at most :data:`AT_ONCE` of each;
    what they raise is logged."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._threads: DaemonExecutor | None = None
        self._jobs: set[object] = set()  # adding and discarding are atomic: no lock that a fork could find held
        self._tasks: set[asyncio.Task[Any]] = set()  # a loop itself keeps only weak references
        _known.add(self)

    def run(self, work: Callable[[], object]) -> bool:
        """Have ``work`` done in another thread, in a copy of this context; False when there is too much already."""
        self._check_pid()
        if len(self._jobs) >= AT_ONCE:
            return False
        if self._threads is None:
            self._threads = DaemonExecutor(THREADS, "meshlib-background")
        job, context = object(), contextvars.copy_context()
        self._jobs.add(job)
        self._threads.submit(self._perform, job, context, work)
        return True

    def _perform(self, job: object, context: contextvars.Context, work: Callable[[], object]) -> None:
        try:
            context.run(work)
        except Exception:  # nobody waits for it
            log.debug("work in the background failed", exc_info=True)
        finally:
            self._jobs.discard(job)

    def begin(self, work: Callable[[], Coroutine[Any, Any, object]]) -> bool:
        """The same for asyncio, in a task of the running loop."""
        self._check_pid()
        if len(self._tasks) >= AT_ONCE:
            self._tasks = {task for task in self._tasks if not task.get_loop().is_closed()}  # those ended with their loop
            if len(self._tasks) >= AT_ONCE:
                return False
        task = asyncio.create_task(work(), name="meshlib-background")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("work in the background failed", exc_info=task.exception())

    def _check_pid(self) -> None:
        """Notice a fork by code that runs no fork hooks."""
        if self._pid != os.getpid():
            self.forked()

    def forked(self) -> None:
        """In a child process: the threads, and what they had to do, are the parent's."""
        self._pid = os.getpid()
        _abandoned.append((self._threads, self._tasks))
        self._threads, self._jobs, self._tasks = None, set(), set()


# Of the parent, in a child process: destroyed there, tasks would complain.
_abandoned: list[object] = []

_known: weakref.WeakSet[Background] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_known):
        each.forked()


os.register_at_fork(after_in_child=_after_fork)

BACKGROUND: Final = Background()
