"""A module for a framework that is not there says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from meshlib.errors import MissingExtra


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports of the library ``extra``, which the extra of that name brings; raises :class:`~meshlib.MissingExtra`."""
    try:
        yield
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.partition(".")[0] != extra:
            raise  # it is there, and lacks something itself
        raise MissingExtra(f"meshlib_contrib.{extra}", extra, extra) from None
