"""The abstraction: a call is a generator that yields effects, a layer wraps one, a shell performs them.

A layer is written once::

    def bulkhead(call: Call, proceed: Next) -> Flow:
        with permits.acquire():
            return (yield from proceed(call))

and runs under :func:`run` (blocking), :func:`arun` (asyncio) and :func:`meshlib.testing.play` (a script). Layers decide;
they never do I/O, never sleep and hold no lock across a ``yield``.
"""

from meshlib.flow.abstraction import (
    FUNCTION,
    IDEMPOTENCY_KEY,
    IDEMPOTENT,
    INCOMING,
    TIMED,
    Aside,
    AsyncSender,
    Await,
    Call,
    Close,
    Effect,
    Flow,
    Given,
    Layer,
    Next,
    Race,
    RawHeaders,
    Response,
    Send,
    Sender,
    Sleep,
    Wait,
    compose,
    send,
    tried_instances,
)
from meshlib.flow.awaiting import araced, arun
from meshlib.flow.blocking import Course, raced, run

__all__ = [
    "FUNCTION",
    "IDEMPOTENCY_KEY",
    "IDEMPOTENT",
    "INCOMING",
    "TIMED",
    "Aside",
    "AsyncSender",
    "Await",
    "Call",
    "Close",
    "Course",
    "Effect",
    "Flow",
    "Given",
    "Layer",
    "Next",
    "Race",
    "RawHeaders",
    "Response",
    "Send",
    "Sender",
    "Sleep",
    "Wait",
    "araced",
    "arun",
    "compose",
    "raced",
    "run",
    "send",
    "tried_instances",
]
