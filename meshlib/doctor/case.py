"""What checks are given, and what they find."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from meshlib.backends import Backend
from meshlib.settings import Settings, env_name, knobs

ERROR: Final = "error"
WARNING: Final = "warning"

Level: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. ``code`` names its kind and stays as it is, ``what`` says what was seen, ``hint`` what to do."""

    code: str
    level: Level
    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check came to: ``detail`` is what it saw, or, when it was ``skipped``, why."""

    detail: str
    findings: tuple[Finding, ...] = ()
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A setting: its value as text (of a secret only that it is set) and where it came from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Report:
    """All checks by their names, in their order, and the settings."""

    settings: tuple[Known, ...]
    checks: Mapping[str, Outcome]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all checks."""
        return tuple(finding for outcome in self.checks.values() for finding in outcome.findings)


@dataclass
class Case:
    """What is examined: ``settings`` as far as they can be used, ``wrong`` what was found on the way to them. ``backend`` is
    None where the registry's settings are of no use. ``services`` are the names in the registry, None before it answered."""

    settings: Settings
    environ: Mapping[str, str]
    wrong: tuple[Finding, ...] = ()
    backend: Backend | None = None
    wall: Callable[[], float] = time.time
    services: list[str] | None = None
    seen: dict[str, Any] = field(default_factory=dict)


Check: TypeAlias = Callable[[Case], Awaitable[Outcome]]


def known(settings: Settings) -> tuple[Known, ...]:
    """All settings, and where each came from."""
    found = []
    for knob in knobs():
        value = getattr(settings, knob.name)
        found.append(Known(env_name(knob.name), _shown(value), settings.sources.get(knob.name, "default")))
    return tuple(found)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={text}" for key, text in value.items())
    return "" if value is None else str(value)  # a secret shows itself as ***
