"""Checks of the registry: whether it answers, what its clock says, what we may do there, and what is in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from meshlib.backends.base import Trial
from meshlib.backends.http import ControlClient, tls_context
from meshlib.doctor.case import ERROR, WARNING, Case, Finding, Outcome
from meshlib.errors import CasConflict, ConfigError, MissingExtra, RegistryDenied, RegistryError, RegistryUnavailable
from meshlib.governance.layout import key_of
from meshlib.governance.policies import Policies
from meshlib.model import ServiceUrl, Status

PORTS: Final = {"consul": 8500, "etcd": 2379}
ALIVE: Final = {"consul": "/v1/status/leader", "etcd": "/version"}
"""What each server answers to everybody."""
SKEW: Final = 2.0
"""Seconds that two clocks may be apart."""
MOST: Final = 100
"""Services that are looked at."""
NEVER: Final = 2**62
"""A revision that no key has."""
NOBODY: Final = Outcome("the registry does not answer, or cannot be asked", skipped=True)


@dataclass(frozen=True, slots=True)
class Server:
    """One server of the registry: ``skew`` is how far its clock is ahead of ours, as far as its answer tells; ``problem`` why
    it is of no use."""

    url: str
    skew: float | None
    problem: str


async def reachable(case: Case) -> Outcome:
    """Whether the registry lists services, and each of its servers answers."""
    if case.backend is None:
        return Outcome("its settings are of no use", skipped=True)
    url, findings = case.settings.registry, list[Finding]()
    servers = case.seen["servers"] = await _servers(case)
    down = [server for server in servers if server.problem]
    started = time.perf_counter()
    try:
        case.services = await case.backend.registry.services(case.settings.namespace)
    except RegistryDenied as problem:
        findings.append(Finding("registry.denied", ERROR, str(problem), _credentials(url.scheme)))
    except (RegistryError, ConfigError) as problem:
        hint = "is it running, is the address right, is a firewall in between? Apps go on with their disk snapshots"
        findings.append(Finding("registry.unreachable", ERROR, str(problem), hint))
        return Outcome(f"{url} does not answer", tuple(findings))
    for server in down:
        what = f"of the registry's servers, {server.url} is of no use: {server.problem}"
        findings.append(Finding("registry.server_down", WARNING, what, "repair it, or take it out of MESH_REGISTRY"))
    return Outcome(f"{url} answered in {(time.perf_counter() - started) * 1000:.0f} ms", tuple(findings))


def _credentials(scheme: str) -> str:
    if scheme == "etcd":
        return "check MESH_REGISTRY_USER and MESH_REGISTRY_PASSWORD (or _PASSWORD_FILE)"
    return "check MESH_REGISTRY_TOKEN (or MESH_REGISTRY_TOKEN_FILE): it needs service:read, and node:read for Consul"


async def _servers(case: Case) -> list[Server]:
    settings = case.settings
    if settings.registry.scheme not in PORTS:
        return []
    hosts = tuple((host, port or PORTS[settings.registry.scheme]) for host, port in settings.registry.hosts)
    client = ControlClient(hosts, timeout=settings.registry_timeout, tls=tls_context(settings))
    try:
        return list(await asyncio.gather(*(_server(case, client, base) for base in client.bases)))
    finally:
        await client.aclose()


async def _server(case: Case, client: ControlClient, base: str) -> Server:
    before = case.wall()
    try:
        answer = await client.request("GET", ALIVE[case.settings.registry.scheme], only=base)
    except RegistryUnavailable as problem:
        return Server(base, None, str(problem))
    skew = apart(answer.headers.get("Date", ""), before, case.wall())
    if answer.status_code != 200:
        return Server(base, skew, f"it answers {answer.status_code}")
    leaderless = case.settings.registry.scheme == "consul" and answer.content.strip() in (b'""', b"")
    return Server(base, skew, "it knows no leader" if leaderless else "")


def apart(date: str, before: float, after: float) -> float | None:
    """How far, in seconds, the clock that wrote ``date`` (of a header, in whole seconds) is at least ahead of ours (behind:
    negative), when it did so between ``before`` and ``after``; 0 for no more than is allowed, None for no date."""
    try:
        written = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
    if written - after > SKEW:
        return written - after
    return written + 1 - before if before - (written + 1) > SKEW else 0.0


async def clock(case: Case) -> Outcome:
    """Whether our clock goes as the registry's: ages of snapshots and logs are told by it."""
    servers = [server for server in case.seen.get("servers", ()) if server.skew is not None]
    if not servers:
        return Outcome("the registry tells no time", skipped=True)
    findings = [
        Finding("clock.skew", WARNING,
                f"the clock of {server.url} is {abs(server.skew):.0f} s {'ahead of' if server.skew > 0 else 'behind'} ours",
                "synchronise both machines (NTP): the ages of snapshots are wrong by that")
        for server in servers if server.skew
    ]  # fmt: skip
    return Outcome(f"within {SKEW:g} s of the registry's" if not findings else "wrong", tuple(findings))


# -- what we may do


async def rights(case: Case) -> Outcome:
    """Whether we may read the services, and register ours. Nothing is registered for it."""
    if case.services is None or case.backend is None:
        return NOBODY
    registry, name = case.backend.registry, case.settings.service
    service = ServiceUrl(name or "meshlib-trial", case.settings.namespace)
    try:
        await registry.fetch(service)
    except RegistryDenied as problem:
        return Outcome(
            "refused", (Finding("registry.denied", ERROR, str(problem), _credentials(case.settings.registry.scheme)),)
        )
    if not name:
        return Outcome("services can be read; MESH_SERVICE is not set, so nothing is registered")
    if not isinstance(registry, Trial):
        return Outcome("everybody who reaches it may read and register")
    try:
        await registry.try_register(service)
    except RegistryDenied as problem:
        consul = case.settings.registry.scheme == "consul"
        hint = f"give the token service:write on {name!r}" if consul else f"grant the user readwrite on the keys of {name!r}"
        return Outcome("read only", (Finding("registry.cannot_register", ERROR, str(problem), hint),))
    return Outcome(f"services can be read, and {name} registered")


async def key_value(case: Case) -> Outcome:
    """Whether we may read and write policy documents. Nothing is written for it: the condition of the write never holds."""
    if case.services is None or case.backend is None:
        return NOBODY
    if case.backend.kv is None:
        return Outcome(f"{case.settings.registry.scheme}:// has none", skipped=True)
    key = key_of(ServiceUrl(case.settings.service or "meshlib-trial", case.settings.namespace))
    try:
        await case.backend.kv.get(key)
    except RegistryDenied as problem:
        hint = "grant read on the prefix policies/, or set MESH_POLICIES=off"
        return Outcome("refused", (Finding("kv.denied", WARNING, f"policy documents cannot be read: {problem}", hint),))
    try:
        await case.backend.kv.put(key, b"", expected=NEVER)
    except CasConflict:
        return Outcome("can be read and written")
    except RegistryDenied as problem:
        what = f"policy documents can be read, but not put: {problem}"
        hint = "operators need write on policies/ and policy-history/; apps do not (then: --ignore kv.read_only)"
        return Outcome("read only", (Finding("kv.read_only", WARNING, what, hint),))
    raise RegistryError("a write took place whose condition cannot hold")


# -- what is in it


async def policies(case: Case) -> Outcome:
    """Whether the policy documents that are there can be used."""
    if case.services is None or case.backend is None or case.backend.kv is None:
        return NOBODY
    office, findings = Policies(case.backend.kv, namespace=case.settings.namespace), list[Finding]()
    try:
        names = await office.names()
        for name in names[:MOST]:
            findings += await _policy(office, name)
    except RegistryDenied as problem:
        return Outcome(str(problem), skipped=True)  # which the key-value store's check has told
    return Outcome(f"{len(names)} documents", tuple(findings))


async def _policy(office: Policies, name: str) -> Iterable[Finding]:
    try:
        await office.get(name)
    except MissingExtra as missing:
        return [Finding("extras.missing", ERROR, f"the policy document of {name} {missing.problem}", missing.example)]
    except ConfigError as wrong:
        hint = f"every process refuses it and goes on with the one before: mesh policy edit {name}, or put it right where it is"
        return [Finding("policy.rejected", ERROR, f"the policy document of {name}: {wrong}", hint)]
    return []


async def services(case: Case) -> Outcome:
    """Whether each service that is registered has somebody who may be called."""
    if case.services is None or case.backend is None:
        return NOBODY
    findings = list[Finding]()
    for name in case.services[:MOST]:
        listing = await case.backend.registry.fetch(ServiceUrl(name, case.settings.namespace))
        if not any(one.status is Status.UP for one in listing.instances):
            all_of = f"all {len(listing.instances)} are draining or in maintenance" if listing.instances else "no check passes"
            what = f"{name} is registered, but has nobody to call: {all_of}"
            findings.append(
                Finding("service.not_passing", WARNING, what, f"mesh instances {name}; then look at its checks and log")
            )
    return Outcome(", ".join(case.services[:MOST]) or "none is registered", tuple(findings))
