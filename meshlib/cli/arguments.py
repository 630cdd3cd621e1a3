"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from meshlib.discovery.store import SnapshotStore
from meshlib.errors import ConfigError
from meshlib.settings import Settings


def known(incomplete: str) -> list[str]:
    """The services that begin so, for the shell to complete: those on disk, for nobody waits for a registry here."""
    try:
        settings = Settings.load()
    except ConfigError:
        return []
    store = SnapshotStore(settings.state_path, registry=str(settings.registry), max_age=settings.snapshot_max_age)
    names = (path.stem.removeprefix(f"{settings.namespace}.") for path in store.directory.glob("*.json"))
    return sorted(name for name in names if name.startswith(incomplete))


Name: TypeAlias = Annotated[
    str, typer.Argument(metavar="NAME", help="A service, [mesh://][app.env.]service.", autocompletion=known)
]
