"""``register``, ``drain``, ``maintenance``: instances and their status."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from meshlib.backends import Backend
from meshlib.backends.base import Maintains
from meshlib.cli.arguments import Name
from meshlib.cli.facts import Listed, Registered, Told, Wishes
from meshlib.cli.session import Session
from meshlib.discovery.wishes import group_of, tell
from meshlib.errors import ConfigError, RegistryError
from meshlib.mesh import Mesh
from meshlib.model import Instance, ServiceUrl, Status
from meshlib.settings import Settings

LOOK = 0.2
"""Seconds between two looks whether a wish is listed."""

One = Annotated[str | None, typer.Argument(metavar="[INSTANCE]", help="SERVICE/ID, or the id alone.")]
All = Annotated[str | None, typer.Option("--service", metavar="NAME", help="All instances of that service.")]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait until the registry lists it so.", min=0.0)]


def register(
    session: Session,
    name: Name,
    *,
    port: Annotated[int, typer.Option("--port", help="Where it listens.", min=1, max=65535)],
    advertise: Annotated[str | None, typer.Option("--advertise", help="host[:port] that others call.")] = None,
    id: Annotated[str | None, typer.Option("--id")] = None,
    version: Annotated[str | None, typer.Option("--version")] = None,
    zone: Annotated[str | None, typer.Option("--zone")] = None,
    weight: Annotated[int | None, typer.Option("--weight")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be given several times.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Even if nobody listens there.")] = False,
    seconds: Annotated[float | None, typer.Option("--seconds", help="End after that many.", min=0.0)] = None,
) -> Registered | None:
    """List something that does not use meshlib, as long as this command runs; Ctrl-C or SIGTERM takes it out, in good order."""
    settings = session.settings_with(
        service=name, port=port, advertise=advertise, instance_id=id, version=version, zone=zone, weight=weight,
        labels=",".join(label) if label else None,
    )  # fmt: skip
    if not force and not listens(port):
        raise ConfigError("--port", f"nobody listens on port {port}", source="command line", example="--force, to list it so")
    with Mesh(settings) as mesh, _until_stopped() as wait, mesh.register() as registration:
        with session.busy("registering"):
            instance = registration.wait(settings.registry_timeout * 2)
        session.say(Registered(instance=Listed.of(instance)))
        wait(seconds)
    return None


def listens(port: int) -> bool:
    """Whether anybody on this machine accepts connections on ``port``."""
    for address in ("127.0.0.1", "::1", socket.gethostname()):
        with suppress(OSError), socket.create_connection((address, port), timeout=1.0):
            return True
    return False


@contextmanager
def _until_stopped() -> Iterator[Callable[[float | None], None]]:
    """A function that waits for some seconds, or until Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield _wait
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _wait(seconds: float | None) -> None:
    with suppress(KeyboardInterrupt):
        if seconds is not None:
            time.sleep(seconds)
        else:
            while True:
                signal.pause()


def drain(
    session: Session,
    *,
    instance: One = None,
    service: All = None,
    undo: Annotated[bool, typer.Option("--undo", help="Have it listed as ready again.")] = False,
    wait: Wait = 20.0,
) -> Wishes:
    """Have an instance of another process finish what it has: nobody calls it as long as there are others. It works for the
    processes of this machine and user; elsewhere, run it there, or use ``maintenance``."""
    return _wish(session, instance, service, Status.UP if undo else Status.DRAINING, wait)


def maintenance(
    session: Session,
    *,
    instance: One = None,
    service: All = None,
    off: Annotated[bool, typer.Option("--off", help="Bring it back.")] = False,
    wait: Wait = 20.0,
) -> Wishes:
    """Take an instance out: nobody calls it but by its exact name. It works for the processes of this machine and user, and
    everywhere for those of Consul, by its own maintenance mode, through the agent that they are registered with."""
    return _wish(session, instance, service, Status.UP if off else Status.MAINTENANCE, wait)


def _wish(session: Session, instance: str | None, service: str | None, status: Status, wait: float) -> Wishes:
    if (instance is None) == (service is None):
        raise ConfigError("INSTANCE", "or --service is needed, and not both", source="command line",
                          example="orders/orders-10.0.0.5-8080")  # fmt: skip
    settings = session.settings

    async def wish(backend: Backend) -> list[Told]:
        meant = await targets(backend, settings, instance, service)
        return list(await asyncio.gather(*(_told(backend, settings, one, status, wait) for one in meant)))

    with session.busy(f"asking for {status.value}"):
        return Wishes(told=session.ask(wish))


async def targets(backend: Backend, settings: Settings, instance: str | None, service: str | None) -> list[Instance]:
    """The instances that are meant: of a ``service``, or one by its exact name, or by its id among all."""
    if service is not None:
        return list((await backend.registry.fetch(ServiceUrl.parse(service, namespace=settings.namespace))).instances)
    assert instance is not None
    if "/" in instance.removeprefix("mesh://"):
        url = ServiceUrl.parse(instance, namespace=settings.namespace)
        names, wanted = [url.name], url.instance
    else:
        found = await backend.registry.services(settings.namespace)
        names, wanted = [ServiceUrl(name, settings.namespace) for name in found], instance
    listings = [await backend.registry.fetch(name) for name in names]
    return [one for listing in listings for one in listing.instances if one.id == wanted]


async def _told(backend: Backend, settings: Settings, one: Instance, status: Status, wait: float) -> Told:
    try:
        how = await _tell(backend, settings, one, status)
    except (RegistryError, OSError, ValueError) as problem:
        return Told(instance=str(one.url), wish=status.value, how="", seen=False, problem=str(problem))
    seen = await _seen(backend, one, status, wait)
    late = "" if seen else f"the registry did not list it so within {wait:g} s"
    return Told(instance=str(one.url), wish=status.value, how=how, seen=seen, problem=late)


async def _tell(backend: Backend, settings: Settings, one: Instance, status: Status) -> str:
    """Its processes, else the registry; what was ordered of the registry is ended there, too."""
    group = await asyncio.to_thread(group_of, settings, one)
    if group is not None:
        await asyncio.to_thread(tell, group, status)
        if status is Status.UP and isinstance(backend.registry, Maintains):
            with suppress(RegistryError):
                await backend.registry.maintain(one, on=False)
        return "siblings"
    elsewhere = (f"no process of this user serves it here with the state directory {settings.state_path}; run this on its "
                 "machine, as its user, with its MESH_STATE_DIR")  # fmt: skip
    if not isinstance(backend.registry, Maintains):
        raise RegistryError(elsewhere)
    if status is Status.DRAINING:
        raise RegistryError(f"{elsewhere}, or use maintenance, which Consul itself knows")
    await backend.registry.maintain(one, on=status is Status.MAINTENANCE)
    return "registry"


async def _seen(backend: Backend, one: Instance, status: Status, wait: float) -> bool:
    """Whether the registry lists ``one`` with ``status`` within ``wait`` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(wait):
            while True:
                with suppress(RegistryError):
                    listed = {each.id: each.status for each in (await backend.registry.fetch(one.url.name)).instances}
                    if listed.get(one.id) is status:
                        return True
                await asyncio.sleep(LOOK)
    return False
