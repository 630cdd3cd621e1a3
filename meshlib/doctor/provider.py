"""Checks of this process's own service: whether others can reach what it advertises, and whether that is what is listed."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from meshlib.discovery.address import advertised, source_address, suspicious
from meshlib.discovery.registration import describe
from meshlib.doctor.case import ERROR, WARNING, Case, Finding, Outcome
from meshlib.errors import ConfigError
from meshlib.model import Instance, parse_host

NONE = Outcome("MESH_SERVICE is not set: this is no provider", skipped=True)


async def address(case: Case) -> Outcome:
    """The address that is advertised: whether it makes sense, and anybody accepts connections there."""
    settings = case.settings
    if not settings.service:
        return NONE
    if case.backend is None:
        return Outcome("the registry's settings are of no use", skipped=True)
    routes = case.backend.registry.routes
    try:
        source = await asyncio.to_thread(source_address, routes)
        host, port = advertised(settings, None, source)
    except OSError as problem:
        return Outcome(
            "none", (Finding("address.no_route", ERROR, f"no route to the registry: {problem}", "set MESH_ADVERTISE"),)
        )
    except ConfigError as problem:
        return Outcome(f"not known yet: {problem.problem}", skipped=True)
    case.seen["ours"] = describe(settings, parse_host(host), port, generation="doctor")
    findings = [Finding("address.loopback", ERROR, warning, "set MESH_ADVERTISE to an address that others reach")
                for warning in [suspicious(host, routes)] if warning]  # fmt: skip
    findings += await _answers(case, host, port)
    return Outcome(f"{host}:{port}", tuple(findings))


async def _answers(case: Case, host: str, port: int) -> list[Finding]:
    settings = case.settings
    problem = case.seen["silent"] = await _refusal(host, port, settings.connect_timeout)
    if not problem:
        return []
    serving = settings.port or port
    here = [each for each in ("127.0.0.1", "::1") if not await _refusal(each, serving, settings.connect_timeout)]
    if not here and (not settings.advertise or host in ("127.0.0.1", "::1", "localhost")):
        what = f"nobody accepts connections on port {serving}: {problem}"
        return [Finding("port.silent", WARNING, what, "start the app, or set MESH_PORT to the port that it listens on")]
    what = f"{host}:{port} is advertised, but does not accept connections (from here): {problem}"
    hint = f"it listens on {here[0]} only: bind 0.0.0.0" if here else "set MESH_ADVERTISE to an address that others reach"
    return [Finding("address.unreachable", ERROR, what, hint)]


async def _refusal(host: str, port: int, within: float) -> str:
    """Why nobody accepts a connection there; empty when somebody does."""
    try:
        async with asyncio.timeout(within):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer within {within:g} s"
    except (OSError, UnicodeError) as problem:
        return str(problem)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return ""


async def instance(case: Case) -> Outcome:
    """Whether our instance is listed, and no other one under our id."""
    if not case.settings.service:
        return NONE
    ours: Instance | None = case.seen.get("ours")
    if ours is None or case.services is None or case.backend is None:
        return Outcome("nothing to compare", skipped=True)
    listed = (await case.backend.registry.fetch(ours.url.name)).instances
    return Outcome(f"{ours.id}, one of {len(listed)} that are listed", tuple(_compared(case, ours, listed)))


def _compared(case: Case, ours: Instance, listed: tuple[Instance, ...]) -> list[Finding]:
    where = {one.netloc for one in listed if one.id == ours.id}
    if where - {ours.netloc}:
        there = ", ".join(sorted(where))
        what = f"{ours.id} is listed at {there}, and here it is {ours.netloc}: each takes the entry of the other"
        return [Finding("instance.duplicate", ERROR, what, "give each instance its own MESH_INSTANCE_ID, or set none")]
    if not any(one.netloc == ours.netloc for one in listed) and not case.seen.get("silent", "?"):
        what = f"somebody serves {ours.netloc}, but {ours.service} is not listed there"
        return [Finding("instance.missing", WARNING, what, "does the app call mesh.register()? See its log")]
    return []
