"""How many requests are being served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class InFlight:
    """Requests being served by this process. ``draining`` is set once it wants no more. ``on_serving``, if set, is called
    once, before the first request."""

    def __init__(self) -> None:
        self.draining = False
        self.on_serving: Callable[[], None] | None = None
        self._requests: set[object] = set()
        self._idle: threading.Condition | None = None

    def begin(self) -> object:
        """A request came; hand the result to :meth:`end`."""
        if self.on_serving is not None:
            self.serving()
        request = object()
        self._requests.add(request)
        return request

    def end(self, request: object) -> None:
        """Its answer is complete, or it failed. A second time does nothing."""
        self._requests.discard(request)
        if self._idle is not None and not self._requests:
            with self._idle:
                self._idle.notify_all()

    def serving(self) -> None:
        """This process serves, or is about to."""
        on_serving, self.on_serving = self.on_serving, None
        if on_serving is not None:
            on_serving()

    def __len__(self) -> int:
        return len(self._requests)

    def forked(self) -> None:
        """In a child process: what the parent serves is none of its business. Apps that are wrapped already count here."""
        self.draining, self._requests, self._idle = False, set(), None

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is in flight, at most ``timeout`` seconds; False when time ran out."""
        deadline = time.monotonic() + timeout
        # Made only now: gevent may have patched the process since it was forked, and a lock of before stops all greenlets.
        idle = self._idle = self._idle or threading.Condition()
        with idle:
            while self._requests and (left := deadline - time.monotonic()) > 0:
                idle.wait(min(left, 0.1))  # a request may end between the look and the wait
        return not self._requests
