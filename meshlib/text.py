"""How a plain value is written in a URL, a header or a key."""

from __future__ import annotations

import datetime
import enum
from typing import Any


def text_of(value: Any) -> str:
    """A plain value as it stands in a URL or header."""
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return text_of(value.value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)
