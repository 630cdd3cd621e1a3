"""Keeps this process's counts on the shelf, as long as its worker runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from meshlib.metrics.families import Family
from meshlib.metrics.shelf import Shelf
from meshlib.threads import lock

log = logging.getLogger(__name__)

KEEP: Final = 5.0
"""Seconds between two times that a process leaves its counts: of one that is killed, those since the last are lost."""


class Shared:
    """``families`` gives what this process has counted. Where the directory cannot be used, it counts for itself: with a
    warning, once."""

    def __init__(self, directory: Path, families: Callable[[], tuple[Family, ...]]) -> None:
        self.directory, self._shelf, self._families = directory, Shelf(directory), families
        self._warned, self._lock = False, lock()

    def forked(self) -> None:
        """In a child process: it has a shelf of its own from the time that it registers."""
        self._lock = lock()
        self._shelf.forked()

    async def run(self) -> None:
        """Keep the counts, until cancelled."""
        while True:
            await asyncio.get_running_loop().run_in_executor(None, self.keep)
            await asyncio.sleep(KEEP)

    def keep(self) -> None:
        """Leave what was counted so far."""
        try:
            with self._lock:  # what was counted earlier is not to be left later: sums never go back
                self._shelf.keep(self._families())
        except (OSError, ValueError) as problem:
            self._warn(problem)

    def together(self) -> tuple[Family, ...]:
        """What all processes have counted."""
        families: tuple[Family, ...] = ()
        try:
            with self._lock:
                families = self._families()
                return self._shelf.together(families)
        except (OSError, ValueError) as problem:
            self._warn(problem)
            return families

    def _warn(self, problem: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning("the counts of other processes are not known: %s", problem)
