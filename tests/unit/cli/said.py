"""Commands as a user types them, in this process: what they say, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from meshlib.cli.facts import Fact

F = TypeVar("F", bound=Fact)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which is one JSON document and nothing else."""
        return json.loads(self.out)

    def fact(self, kind: type[F]) -> F:
        """The same, checked against its schema: no field too many, none too few."""
        return msgspec.json.decode(self.out, type=kind)


Run = Callable[..., Said]
