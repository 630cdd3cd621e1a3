"""``flask mesh …``: the command line ``mesh``, with the settings and the mesh of the app."""

from __future__ import annotations

import sys

import click
from flask import current_app
from flask.cli import with_appcontext

from meshlib import Mesh, cli

EVERYTHING = {"ignore_unknown_options": True, "help_option_names": []}
"""Click's own options would be in the way of those of ``mesh``, ``--help`` among them."""


@click.command("mesh", context_settings=EVERYTHING, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@with_appcontext
def command(words: tuple[str, ...]) -> None:
    """The command line of the mesh, with the settings of this app: flask mesh services, …"""
    mesh: Mesh = current_app.extensions["mesh"]
    sys.exit(cli.run(words, mesh=mesh, prog="flask mesh"))
