"""The ring of consistent hashing (Karger and others 1997): who is how far round the circle, in one array of doubles.

Each instance has points on a circle, as many as its weight asks for, and a key belongs to the instance of the first point
clockwise of its own place. So when an instance leaves, only its keys move, and one that joins takes only those that it keeps.

A point is a double between 1 and 2: the upper 30 bits of its fraction are the place, the lower 22 say whose it is. One array,
because 1.6 million points as Python numbers take 200 MB; doubles, because Python sorts and compares them in half the time
that numbers of 64 bits take.

The circle is cut into as many equal stretches as an instance of mean weight has points, and each of an instance's points lies
in a stretch of its own, by lot where in it. So a ring is sorted stretch by stretch, and never holds up other threads for long.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import shake_128
from itertools import chain
from typing import Final

from meshlib.keys import BITS

OWNER_BITS: Final = 22
OWNER: Final = (1 << OWNER_BITS) - 1
"""Mask for an entry of :attr:`Ring.owners`: whose point it is."""
STEP: Final = 2.0**-BITS
"""From the digest of a key to its place: ``1.0 + digest * STEP``."""

_ONE: Final = 0x3FF << 52  # the bits of 1.0
_PLACE: Final = (1 << BITS) - 1 << OWNER_BITS
_CROWD: Final = 16  # points in a cell, about: few enough to search, many enough for a small table


class Ring:
    """The points of all ``names``, ``counts`` of each, over ``stretches``.

    Of the digest ``place`` of a key, ``index = bisect_left(points, 1.0 + place * STEP, edges[cell], edges[cell + 1])`` with
    ``cell = place >> shift`` is the first point clockwise, and ``owners[index] & OWNER`` the number of the name that it
    belongs to. The last point is the first one again, so that there is always a next one. 13 bytes a point.
    """

    __slots__ = ("edges", "owners", "points", "shift")

    def __init__(self, names: Sequence[str], counts: Sequence[int], stretches: int) -> None:
        self.points = _sorted(names, counts, stretches)
        cells = 1 << max(0, (len(self.points) // _CROWD).bit_length() - 1)
        self.shift = BITS + 1 - cells.bit_length()
        edges = (bisect_left(self.points, 1.0 + cell / cells) for cell in range(cells))
        self.edges = array("I", chain(edges, [len(self.points)]))
        first = _words(self.points)[0] & OWNER
        self.points.frombytes(array("Q", [_ONE | _PLACE | first]).tobytes())
        self.owners = _words(self.points)


def _words(points: array[float]) -> memoryview:
    """The lower half of each point, where its owner stands."""
    return memoryview(points).cast("B").cast("I")[sys.byteorder == "big" :: 2]


def _sorted(names: Sequence[str], counts: Sequence[int], stretches: int) -> array[float]:
    heaps = [array("d") for _ in range(stretches)]
    around, lanes = heaps * 2, _Lanes(stretches)
    for owner, (name, count) in enumerate(zip(names, counts, strict=True)):
        bits = shake_128(name.encode()).digest(8 * count + 8)
        start = int.from_bytes(bits[:8], "little") % stretches
        for lap in range(8, len(bits), 8 * stretches):
            row = lanes.points(bits[lap : lap + 8 * stretches], start, owner)
            any(map(array.append, around[start : start + len(row)], row))  # append() returns None: any() goes on to the end
    points = array("d")
    for number, heap in enumerate(heaps):
        points.extend(array("d", sorted(heap)))
        heaps[number] = around[number] = around[number + stretches] = array("d")  # what is merged takes no memory
    return points


class _Lanes:
    """Makes a lap of points at once. A long integer is taken for a row of lanes of 64 bits, on which each operation works in
    C: of a ring of 10 000 instances, point by point would take three times as long."""

    def __init__(self, stretches: int) -> None:
        width = (1 << BITS) // stretches
        self._ones = sum(1 << 64 * lane for lane in range(stretches))
        self._low, self._place, self._width = self._ones * 0xFFFFFFFF, self._ones * _PLACE, width
        starts = (lane % stretches * width << OWNER_BITS << 64 * lane for lane in range(2 * stretches))
        self._starts = sum(starts)

    def points(self, bits: bytes, start: int, owner: int) -> array[float]:
        """A point in each stretch from ``start`` on, in as many as there are 8 random ``bits``."""
        size = len(bits)
        # 32 random bits times the width: the place in the stretch is the upper part of the product.
        inside = (int.from_bytes(bits, "little") & self._low) * self._width >> 32 - OWNER_BITS & self._place
        whole = inside + (self._starts >> 64 * start) + self._ones * (_ONE | owner)
        row = array("d")
        row.frombytes((whole & (1 << 8 * size) - 1).to_bytes(size, "little"))
        if sys.byteorder == "big":
            row.byteswap()
        return row
