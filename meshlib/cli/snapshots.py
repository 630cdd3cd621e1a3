"""``snapshot …``: what a process that starts while the registry is down would begin with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from meshlib.cli.calls import read
from meshlib.cli.facts import Listed
from meshlib.cli.session import Session
from meshlib.cli.setup_facts import Carried, SnapshotFile, SnapshotFiles
from meshlib.discovery.archive import Held, exported, held, imported
from meshlib.discovery.store import SnapshotStore, instance_of
from meshlib.errors import ConfigError
from meshlib.model import ServiceUrl

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Services; default: all.")]


def show(session: Session, name: Names = None) -> SnapshotFiles:
    """Show the disk snapshots of this state directory and registry."""
    return _files(session, name, strict=False)


def verify(session: Session, name: Names = None) -> SnapshotFiles:
    """Check them: owner, mode, checksum, age. Nothing is changed. The exit code is 1 if one would not be used."""
    return _files(session, name, strict=True)


def _files(session: Session, names: list[str] | None, *, strict: bool) -> SnapshotFiles:
    store = store_of(session)
    wanted = {str(ServiceUrl.parse(name, namespace=session.settings.namespace)) for name in names or ()}
    found = [one for one in held(store) if not wanted or one.service in wanted]
    return SnapshotFiles(directory=str(store.directory), registry=store.registry, files=list(map(_file, found)), strict=strict)


def store_of(session: Session) -> SnapshotStore:
    """Where the library keeps them."""
    settings = session.settings
    return SnapshotStore(settings.state_path, registry=str(settings.registry), max_age=settings.snapshot_max_age)


def _file(one: Held) -> SnapshotFile:
    document = one.document
    if document is None:
        return SnapshotFile(
            service=one.service, path=str(one.path), age=one.age, instances=[], suspects=[], tombstones={}, revision="",
            problem=one.problem, quarantined=one.quarantined,
        )  # fmt: skip
    found = [instance_of(ServiceUrl.parse(document.service), fields) for fields in document.instances]
    return SnapshotFile(
        service=one.service, path=str(one.path), age=one.age, problem=one.problem, quarantined=False,
        instances=[Listed.of(each, frozenset(document.suspects)) for each in found if each is not None],
        suspects=document.suspects, tombstones=document.tombstones, revision=document.revision,
    )  # fmt: skip


def export(
    session: Session,
    name: Names = None,
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write; - is standard output.")] = "-",
) -> Carried | None:
    """Write the usable snapshots as one document, to be imported on another machine."""
    services = [str(ServiceUrl.parse(each, namespace=session.settings.namespace)) for each in name or ()]
    store = store_of(session)
    content = exported(store, services)
    if output == "-":
        sys.stdout.buffer.write(content + b"\n")
        return None
    try:
        Path(output).write_bytes(content)
    except OSError as problem:
        raise ConfigError("--output", f"{output[:80]!r} cannot be written: {problem.strerror}", source="command line",
                          example="snapshots.json") from None  # fmt: skip
    names = services or [one.service for one in held(store) if one.document is not None]
    return Carried(done="exported", services=names, path=output)


def import_(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help="What export wrote; - is standard input.")],
    any_registry: Annotated[bool, typer.Option("--any-registry", help="Even if it is of another registry's URL.")] = False,
) -> Carried:
    """Put exported snapshots into this state directory. Where it holds something newer, that stays."""
    services = imported(store_of(session), read(file), any_registry=any_registry)
    return Carried(done="imported", services=services, path=file)
