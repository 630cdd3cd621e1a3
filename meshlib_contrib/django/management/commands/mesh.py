"""``manage.py mesh …``: the command line ``mesh`` with the settings of the project."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand

from meshlib import cli
from meshlib.errors import ConfigError
from meshlib_contrib.django.own import get_mesh


class Command(BaseCommand):
    """All arguments are those of ``mesh``, its ``--help`` included."""

    help = "The command line of the mesh, with the settings of this project: manage.py mesh services, …"
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Django's own options would be in the way of those of ``mesh``."""
        sys.exit(self._run(argv[2:], prog=f"{argv[0]} {argv[1]}"))

    def handle(self, *args: Any, **_options: Any) -> None:
        """For ``call_command("mesh", "services")``."""
        code = self._run([str(each) for each in args], prog="mesh")
        if code:
            sys.exit(code)

    def _run(self, words: Sequence[str], *, prog: str) -> int:
        try:
            mesh = get_mesh()
        except ConfigError as problem:
            self.stderr.write(str(problem))
            return cli.WRONG
        return cli.run(words, mesh=mesh, prog=prog)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Whatever they are."""
        parser.add_argument("args", nargs=argparse.REMAINDER)
