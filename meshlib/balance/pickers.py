"""Pickers: from a tuple of endpoints make, once per snapshot, the function that chooses for each call.

A picker is ``(endpoints) -> choose`` and ``choose`` is ``(call) -> endpoint``; what costs time (rings, prefix sums) happens
in the first, which runs once per change of the fleet, never per call. ``endpoints`` is never empty.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import TypeAlias

from meshlib.balance.fleet import Endpoint
from meshlib.errors import ConfigError
from meshlib.flow import Call

Choose: TypeAlias = Callable[[Call], Endpoint]
Picker: TypeAlias = Callable[[tuple[Endpoint, ...]], Choose]


def round_robin(endpoints: tuple[Endpoint, ...]) -> Choose:
    """Each in turn, starting anywhere, so that many consumers do not march in step."""
    size = len(endpoints)
    turns = itertools.count(random.randrange(size))  # next() of a count is atomic: no lock
    return lambda _call: endpoints[next(turns) % size]


def least_request(endpoints: tuple[Endpoint, ...]) -> Choose:
    """The less busy of two drawn at random ("the power of two choices", Mitzenmacher 1996): close to the least busy of all,
    without the herd that follows it."""
    size = len(endpoints)
    if size == 1:
        only = endpoints[0]
        return lambda _call: only
    uniform, pairs, rest = random.random, size * (size - 1), size - 1

    def choose(_call: Call) -> Endpoint:
        first, second = divmod(int(uniform() * pairs), rest)  # one draw for both
        one, other = endpoints[first], endpoints[second + (second >= first)]
        return one if len(one.in_flight) <= len(other.in_flight) else other

    return choose


PICKERS: dict[str, Picker] = {"round_robin": round_robin, "least_request": least_request}


def named(picker: str | Picker) -> Picker:
    """The picker called ``picker``, or itself. Raises :class:`ConfigError` for an unknown name."""
    if callable(picker):
        return picker
    if picker not in PICKERS:
        raise ConfigError("picker", f"{picker[:40]!r} is none of {', '.join(PICKERS)}", example="picker='least_request'")
    return PICKERS[picker]
