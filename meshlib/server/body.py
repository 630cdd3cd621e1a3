"""A WSGI answer that does something when the server closes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


def closed(body: Iterable[bytes]) -> None:
    """Close ``body``, if it can be."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


class Body:
    """``body``, and ``end``, which is called when it has been closed."""

    def __init__(self, body: Iterable[bytes], end: Callable[[], object]) -> None:
        self._body, self._end = body, end

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """What the server calls in any case."""
        try:
            closed(self._body)
        finally:
            self._end()
