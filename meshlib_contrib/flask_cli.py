"""``flask mesh …``: what the app's mesh knows. The group takes further commands by ``group.add_command``."""

from __future__ import annotations

import time

import click
from flask import current_app
from flask.cli import AppGroup

from meshlib import Mesh
from meshlib.errors import MeshError

group = AppGroup("mesh", help="What the mesh knows: services, instances, why a call goes where, health.")


def _mesh() -> Mesh:
    mesh: Mesh = current_app.extensions["mesh"]
    return mesh


@group.command()
def services() -> None:
    """List the names of all services."""
    try:
        names = _mesh().services()
    except (MeshError, TimeoutError) as problem:
        raise click.ClickException(str(problem) or "the registry does not answer") from None
    for name in names:
        click.echo(name)


@group.command()
@click.argument("name")
def instances(name: str) -> None:
    """List the instances of the service NAME; the exit code is 1 when there is none."""
    mesh = _mesh()
    snapshot = mesh.snapshot(name)
    if snapshot is None or not snapshot.instances:
        raise click.ClickException(f"{name}: {mesh.view(name).problem or 'no instances'}")
    for each in snapshot.instances:
        click.echo(f"{each.id}\t{each.netloc}\t{each.status.value}\t{each.version or '-'}\t{each.zone or '-'}")
    click.echo(f"{len(snapshot.instances)} as of {snapshot.age(time.time()):.1f} s ago", err=True)


@group.command()
@click.argument("name")
@click.option("--method", default="GET", show_default=True)
@click.option("--path", default="/", show_default=True)
def explain(name: str, method: str, path: str) -> None:
    """Say where a call to the service NAME would go, and why."""
    click.echo(str(_mesh().explain(name, method=method, path=path)))


@group.command()
def health() -> None:
    """Run the app's health checks here; the exit code is 1 when one fails."""
    found = _mesh().management.examine()
    for name, component in found.items():
        reason = component.details.get("error", component.why)
        click.echo(f"{name}\t{component.status}" + (f"\t{reason}" if reason else ""))
    if any(component.status == "DOWN" for component in found.values()):
        raise SystemExit(1)
