"""After a fork: locks that a thread of the parent may have held, and who waits there, are the parent's."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol


class Forked(Protocol):
    """Something that a child process begins anew."""

    def forked(self) -> None: ...


_known: weakref.WeakSet[Any] = weakref.WeakSet()


def on_fork(thing: Forked) -> None:
    """Have ``thing.forked()`` called in each child process, as long as it exists."""
    _known.add(thing)


def _after_fork() -> None:
    for thing in list(_known):
        thing.forked()


os.register_at_fork(after_in_child=_after_fork)
