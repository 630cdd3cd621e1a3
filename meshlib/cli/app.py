"""All commands, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from meshlib._version import VERSION
from meshlib.cli import NO, OK, WRONG, apply, calls, demonstration, diagnosis, health, policy, providers, services, snapshots
from meshlib.cli.common import Frame, before, command, misused
from meshlib.mesh import Mesh

app = typer.Typer(
    name="mesh", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Look at the mesh, call through it, and govern it. Settings come from MESH_* variables, as the library's.",
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


before(app, version=Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")])

command(app)(services.services)
command(app)(services.instances)
command(app)(services.watch)
command(app)(calls.call)
command(app)(calls.explain)
command(app)(providers.register)
command(app)(providers.drain)
command(app)(providers.maintenance)
command(app)(apply.apply)
command(app)(diagnosis.doctor)
command(app)(demonstration.demo)
command(app)(health.health)

_policy = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Policy documents: the rules of running processes.")
app.add_typer(_policy, name="policy")
command(_policy, "list")(policy.names)
command(_policy)(policy.get)
command(_policy)(policy.put)
command(_policy)(policy.edit)
command(_policy)(policy.diff)
command(_policy)(policy.history)
command(_policy)(policy.rollback)
command(_policy)(policy.delete)
command(_policy)(policy.shadow)
command(_policy)(policy.validate)

_snapshot = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Disk snapshots: what is known without a registry.")
app.add_typer(_snapshot, name="snapshot")
command(_snapshot)(snapshots.show)
command(_snapshot)(snapshots.verify)
command(_snapshot)(snapshots.export)
command(_snapshot, "import")(snapshots.import_)


def perform(args: Sequence[str], *, mesh: Mesh | None, prog: str) -> int:
    """See :func:`meshlib.cli.run`."""
    frame = Frame(mesh)
    try:
        code = typer.main.get_command(app).main(list(args) or ["--help"], prog_name=prog, standalone_mode=False, obj=frame)
    except typer.Abort:
        return NO
    except SystemExit as end:  # what completes and what prints its script end so
        return end.code if isinstance(end.code, int) else OK if end.code is None else NO
    except Exception as problem:
        # typer has its own copy of click, or not, by its version: this is what the errors of both have.
        show, message = getattr(problem, "show", None), getattr(problem, "format_message", None)
        if show is None or message is None:
            raise
        show()
        return misused(message(), json=frame.json or "--json" in args)
    if not args:  # which versions of click take for one or the other
        return WRONG
    return code if isinstance(code, int) else OK
