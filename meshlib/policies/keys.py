"""What a limit counts by, besides service and method: any function ``(call) -> hashable`` is a key."""

from __future__ import annotations

from typing import Final

from meshlib.flow import Call

CALLER: Final = b"x-mesh-caller"
"""The header in which a caller says its name."""


def caller(call: Call) -> bytes | None:
    """Who calls, by its own word: the header ``X-Mesh-Caller``; None for whoever says nothing."""
    for name, value in call.headers:
        if len(name) == len(CALLER) and name.lower() == CALLER:
            return value
    return None
