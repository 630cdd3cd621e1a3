"""The command line ``mesh``: thin commands over library functions.

What a command finds is a *fact* (``facts.py``), which is printed as one JSON document with ``--json``, else as text
(``render.py``). Exit codes: 0 fine, 1 the answer is no (not found, unhealthy, findings, no connection), 2 wrong usage or
settings. Nothing but the answer goes to standard output; what goes on meanwhile is told on standard error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshlib.errors import MissingExtra

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

OK, NO, WRONG = 0, 1, 2


def main() -> None:
    """The console script."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")  # to standard error
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str], *, mesh: Mesh | None = None, prog: str = "mesh") -> int:
    """Perform the command that ``args`` say and return its exit code. ``mesh`` is that of an app, whose command line has us
    as one of its commands: its settings hold where ``args`` say nothing else. ``prog`` is how the user called us."""
    try:
        from meshlib.cli.app import perform  # noqa: PLC0415 - a library of an extra
    except ModuleNotFoundError as problem:
        if problem.name not in ("typer", "rich"):
            raise
        print(MissingExtra("mesh", "cli", problem.name, source="command line"), file=sys.stderr)  # noqa: T201 - that is its purpose
        return WRONG
    return perform(args, mesh=mesh, prog=prog)
