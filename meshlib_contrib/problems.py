"""What a web framework answers when a view fails of meshlib's errors: problem details (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from meshlib.errors import DeadlineExceeded, Refused
from meshlib.policies.functions import misplaced
from meshlib.server import problem

__all__ = ["HANDLED", "problem", "warn_of_misplaced"]

log = logging.getLogger(__name__)

HANDLED: Final = (Refused, DeadlineExceeded)
"""The errors that have an answer; subclasses included."""


def warn_of_misplaced(functions: Iterable[Any], registers: str) -> None:
    """Warn of views whose policies stand above what ``registers`` them: there they are never asked."""
    for name in misplaced(functions):
        log.warning(
            "the policies of %s stand above %s, which does not see them: put them below it, next to the def", name, registers
        )
