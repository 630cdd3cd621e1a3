"""An extension of griffe, which reads the docstrings for the reference: their roles and literal blocks (``:class:`Mesh```,
``Example::``) become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")
LITERAL = re.compile(r"::\n(?=\n* {4})")


class Roles(griffe.Extension):
    """What griffe calls for everything it has found."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """A module, class, function or attribute, with a docstring or without."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring as Markdown."""
    return LITERAL.sub(":\n", ROLE.sub(r"`\1`", text))
