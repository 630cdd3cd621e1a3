"""``services``, ``instances``, ``watch``: who is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from meshlib.cli.arguments import Name
from meshlib.cli.facts import Change, Instances, Listed, Services
from meshlib.cli.session import Session
from meshlib.discovery.view import View
from meshlib.model import Instance, Snapshot

LOOK = 0.1
"""Seconds between two looks at what is known: it costs nothing."""


def services(session: Session) -> Services:
    """List the names of all services."""
    settings = session.settings
    names = session.ask(lambda backend: backend.registry.services(settings.namespace))
    return Services(registry=str(settings.registry), namespace=settings.namespace, services=names)


def instances(session: Session, name: Name) -> Instances:
    """List the instances of a service, as a call would find them: from the disk where the registry does not answer."""
    with session.mesh() as mesh:
        snapshot, view = mesh.snapshot(name), mesh.view(name)
        return Instances.of(str(view.service), snapshot, live=view.live, problem=view.problem)


def watch(
    session: Session,
    name: Name,
    seconds: Annotated[float | None, typer.Option("--seconds", help="End after that many.", min=0.0)] = None,
) -> None:
    """Show the instances of a service as they come and go, until Ctrl-C. With --json, one line for each change."""
    with session.mesh() as mesh:
        view = mesh.view(name)
        mesh.snapshot(name)
        try:
            if session.json:
                for change in changes(view, seconds):
                    session.line(change)
            else:
                _table(view, seconds)
        except KeyboardInterrupt:  # the way to end it
            return


def ticks(
    seconds: float | None, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Now, then every :data:`LOOK` seconds, until ``seconds`` have passed."""
    end = None if seconds is None else clock() + seconds
    while True:
        yield
        if end is not None and clock() >= end:
            return
        sleep(LOOK)


def changes(view: View, seconds: float | None, *, times: Iterator[None] | None = None) -> Iterator[Change]:
    """What becomes of ``view``: first all that is known, then each change."""
    before: tuple[Snapshot | None, bool] | None = None
    for _ in ticks(seconds) if times is None else times:
        view.attend()
        now = (view.snapshot, view.live)
        if before is None or _state(now) != _state(before):
            yield _change(view, None if before is None else before[0], *now)
            before = now


def _state(known: tuple[Snapshot | None, bool]) -> object:
    """What makes a difference: not the age, which is confirmed all the time."""
    snapshot, live = known
    return (snapshot and (snapshot.instances, snapshot.suspects, snapshot.source), live)


def _change(view: View, old: Snapshot | None, new: Snapshot | None, live: bool) -> Change:
    before, after = _by_id(old), _by_id(new)
    suspects = new.suspects if new else frozenset[str]()
    told_apart = suspects ^ (old.suspects if old else frozenset[str]())

    def differs(one: Instance) -> bool:
        return one.id in before and (before[one.id] != one or one.id in told_apart)

    return Change(
        at=time.time(), service=str(view.service), live=live, problem="" if live else view.problem,
        source=new.source if new else "",
        added=[Listed.of(one, suspects) for one in after.values() if one.id not in before],
        removed=sorted(before.keys() - after.keys()),
        changed=[Listed.of(one, suspects) for one in after.values() if differs(one)], count=len(after),
    )  # fmt: skip


def _by_id(snapshot: Snapshot | None) -> dict[str, Instance]:
    return {one.id: one for one in snapshot.instances} if snapshot else {}


def _table(view: View, seconds: float | None) -> None:
    from rich.live import Live  # noqa: PLC0415 - of an extra

    from meshlib.cli.render import text  # noqa: PLC0415
    from meshlib.cli.session import console  # noqa: PLC0415

    with Live(console=console(), auto_refresh=False, transient=False) as live:
        for number, _ in enumerate(ticks(seconds)):
            view.attend()
            if number % 5 == 0:
                shown = Instances.of(str(view.service), view.snapshot, live=view.live, problem=view.problem)
                live.update(text(shown), refresh=True)
