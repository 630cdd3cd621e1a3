"""``manage.py mesh …``: the command line ``mesh`` with the settings of the project."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand

from meshlib import cli
from meshlib_contrib.django.own import get_mesh


class Command(BaseCommand):
    """All arguments are those of ``mesh``, its ``--help`` included."""

    help = "The command line of the mesh, with the settings of this project: manage.py mesh services, …"
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Django's own options would be in the way of those of ``mesh``."""
        sys.exit(cli.run(argv[2:], mesh=get_mesh(), prog=f"{argv[0]} {argv[1]}"))

    def handle(self, *args: Any, **_options: Any) -> str | None:
        """For ``call_command("mesh", "services")``."""
        code = cli.run([str(each) for each in args], mesh=get_mesh(), prog="mesh")
        if code:
            sys.exit(code)
        return None
