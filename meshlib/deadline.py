"""How long there is left: carried by a call, by the task or thread that serves a request, and by a header to the next hop.

On the wire it is :data:`HEADER` with the milliseconds that are left when the request is sent: relative, so that the clocks of
two hosts need not agree. Inside a process it is a monotonic time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from meshlib.errors import AttemptTimeout, DeadlineExceeded
from meshlib.flow import Call, tried_instances

HEADER: Final = "X-Mesh-Deadline"
LONGEST: Final = 3600.0
"""Seconds that a request may bring: what anybody says beyond that is no deadline of a request."""

_RAW: Final = HEADER.encode("ascii")
_current: ContextVar[float | None] = ContextVar("meshlib.deadline", default=None)
_clock: ContextVar[Callable[[], float]] = ContextVar("meshlib.clock", default=time.monotonic)


def inherited() -> float | None:
    """The deadline (monotonic seconds) of what is being done here: of the request that is served, or of the function that has
    a ``timeout``. None where there is none."""
    return _current.get()


def time_left() -> float | None:
    """Seconds (float, 0 when it is over) that whoever called this code still waits, None when nobody said."""
    deadline = _current.get()
    return None if deadline is None else max(0.0, deadline - now())


def now() -> float:
    """The monotonic time by which the deadline of what is being done here is meant."""
    return _clock.get()()


@contextmanager
def timed_by(clock: Callable[[], float]) -> Iterator[None]:
    """Within it, deadlines are those of ``clock``: a test's."""
    before = _clock.get()
    _clock.set(clock)
    try:
        yield
    finally:
        _clock.set(before)


def enter(deadline: float | None) -> float | None:
    """Let calls made from here on end by ``deadline``; returns what held before, to be entered again."""
    previous = _current.get()
    _current.set(deadline)
    return previous


@contextmanager
def until(deadline: float | None) -> Iterator[None]:
    """Within it, calls end by ``deadline`` (monotonic seconds). With None, they are not bound by the request that is served:
    for work that outlives it."""
    previous = enter(deadline)
    try:
        yield
    finally:
        _current.set(previous)


def earlier(one: float | None, other: float | None) -> float | None:
    """The earlier of two deadlines, where None is never."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def seconds_of(text: str) -> float | None:
    """What the header's value says is left, in seconds; None for what is no such value. Of several, which a proxy may have
    joined with commas, the least."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return min(min(float(part[:12]) / 1000.0, LONGEST) for part in parts)


def bounded(call: Call, now: float) -> Call:
    """The copy of ``call`` for an attempt that begins at ``now``: it ends by the deadline of the call, or sooner by the limit
    of an attempt, none of its time-outs is beyond that, and it tells the instance. Raises
    :class:`~meshlib.errors.DeadlineExceeded` when no time is left."""
    deadline = call.deadline
    if call.attempt_timeout is not None:
        deadline = earlier(deadline, now + call.attempt_timeout)
    if deadline is None:
        return call
    left = deadline - now
    if left <= 0:
        raise DeadlineExceeded(f"{call.method} {call.target}: no time is left", service=call.target,
                               tried=tried_instances(call.tried))  # fmt: skip
    attempt = call.__copy__()
    attempt.deadline = deadline
    attempt.headers = [*call.headers, (_RAW, b"%d" % (int(left * 1000.0) or 1))]
    limits = call.extensions.get("timeout")
    if limits:
        attempt.extensions = {**call.extensions, "timeout": _shorter(limits, left)}
    return attempt


def _shorter(limits: dict[str, float | None], left: float) -> dict[str, float | None]:
    connect, read, write, pool = limits.get("connect"), limits.get("read"), limits.get("write"), limits.get("pool")
    return {
        "connect": left if connect is None or connect > left else connect,
        "read": left if read is None or read > left else read,
        "write": left if write is None or write > left else write,
        "pool": left if pool is None or pool > left else pool,
    }


def of_attempt(late: DeadlineExceeded) -> AttemptTimeout:
    """What it is when an attempt was ended by its own limit, while its call has time left."""
    return AttemptTimeout(str(late), service=late.service, instance=late.instance)
