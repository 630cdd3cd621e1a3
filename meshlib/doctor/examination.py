"""All checks, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from meshlib.backends import Backend, open_backend
from meshlib.doctor import local, provider, registry
from meshlib.doctor.case import ERROR, WARNING, Case, Check, Finding, Outcome, Report, known
from meshlib.errors import ConfigError, MeshError, MissingExtra
from meshlib.settings import Settings, unknown

TRIES: Final = 20
"""Wrong settings that are told at once."""
REGISTRY: Final = ("MESH_REGISTRY", "MESH_NAMESPACE")
"""What, wrong in any way, leaves no registry to ask."""

CHECKS: Final[Mapping[str, Check]] = {
    "extras": local.extras,
    "state directory": local.state_directory,
    "snapshots": local.snapshots,
    "processes": local.processes,
    "registry": registry.reachable,
    "clock": registry.clock,
    "rights": registry.rights,
    "key-value store": registry.key_value,
    "policies": registry.policies,
    "services": registry.services,
    "address": provider.address,
    "instance": provider.instance,
}
"""In their order: a later one may use what an earlier one saw. None of them changes anything but what it removes again."""


async def examine(
    given: Mapping[str, Any] | None = None,
    *,
    settings: Settings | None = None,
    environ: Mapping[str, str] | None = None,
    source: str = "code",
    wall: Callable[[], float] = time.time,
) -> Report:
    """Examine the setup that ``environ`` (default: ours) and ``given`` settings (from ``source``) make, or the ``settings`` of
    an app. It never raises for what it finds."""
    environ = os.environ if environ is None else environ
    found, wrong = (settings, ()) if settings is not None else load(environ, given or {}, source)
    wrong += tuple(_unknown(key, near) for key, near in unknown(environ))
    backend, unusable = _backend(found, wrong)
    case = Case(found, environ, (*wrong, *unusable), backend, wall)
    try:
        checks = {"settings": _settings(case)}
        for name, check in CHECKS.items():
            checks[name] = await _outcome(check, case)
    finally:
        if backend is not None:
            await backend.close()
    return Report(known(found), checks)


async def _outcome(check: Check, case: Case) -> Outcome:
    try:
        return await check(case)
    except (MeshError, OSError, ValueError) as problem:  # what a check did not think of is no reason to leave out the others
        name = getattr(check, "__name__", "check")
        found = Finding(f"{name}.failed", ERROR, f"the check failed: {problem}", "see the message")
        return Outcome("failed", (found,))


def load(environ: Mapping[str, str], given: Mapping[str, Any], source: str = "code") -> tuple[Settings, tuple[Finding, ...]]:
    """The settings without those that are wrong, and what is wrong with those."""
    variables, code, wrong = dict(environ), dict(given), list[Finding]()
    for key, _ in unknown(environ):
        del variables[key]
    for _ in range(TRIES):
        try:
            settings = Settings.load(environ=variables, **code)
            return replace(settings, sources={**settings.sources, **dict.fromkeys(code, source)}), tuple(wrong)
        except ConfigError as problem:
            wrong.append(_invalid(problem, source if problem.source == "code" else problem.source))
            if not _without(problem.name, variables, code):
                break
    return Settings.load(environ={}), tuple(wrong)


def _without(name: str, variables: dict[str, str], code: dict[str, Any]) -> bool:
    """Leave out the setting ``name``, or the other half of a pair that misses it. False when neither is there."""
    half = name[:-4] + "_KEY" if name.endswith("_CERT") else name[:-4] + "_CERT" if name.endswith("_KEY") else name
    half = half.replace("__", "_")
    for each in (name, half):
        knob = each.removeprefix("MESH_").lower()
        if code.pop(knob, None) is not None or variables.pop(each, None) is not None:
            return True
    return False


def _invalid(problem: ConfigError, source: str = "") -> Finding:
    hint = f"for example {problem.example}" if problem.example else "see docs/settings.md"
    return Finding("settings.invalid", ERROR, f"{problem.name} (from {source or problem.source}): {problem.problem}", hint)


def _unknown(key: str, near: str) -> Finding:
    hint = f"did you mean {near}?" if near else "unset it, or see docs/settings.md for the names there are"
    return Finding("settings.unknown", WARNING, f"{key} is no setting, and does nothing", hint)


def _backend(settings: Settings, wrong: tuple[Finding, ...]) -> tuple[Backend | None, tuple[Finding, ...]]:
    if any(each.what.startswith(REGISTRY) for each in wrong):
        return None, ()
    try:
        return open_backend(settings), ()
    except MissingExtra as missing:
        return None, (Finding("extras.missing", ERROR, f"{settings.registry.scheme}:// {missing.problem}", missing.example),)
    except ConfigError as problem:
        return None, (_invalid(problem),)


def _settings(case: Case) -> Outcome:
    given = [each for each in known(case.settings) if each.source != "default"]
    told = ", ".join(f"{each.name} from the {each.source}" for each in given) or "all are defaults"
    return Outcome(told, case.wrong)
