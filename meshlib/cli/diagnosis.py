"""``doctor``: what is wrong with a setup."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from meshlib.cli.session import SOURCE, Session
from meshlib.cli.setup_facts import Checked, Diagnosis, Found, Setting
from meshlib.doctor import Report, examine


def doctor(
    session: Session,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="CODE", help="A kind of finding that is fine here.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", "-a", help="Show the settings that are defaults, too.")] = False,
) -> Diagnosis:
    """Examine the setup: settings and where each came from, the state directory and what is in it, the registry, its clock and
    what we may do there, the address that is advertised. Nothing is changed. The exit code is 1 if anything is found."""
    with session.busy("examining"):
        report = asyncio.run(examine(session.given, settings=session.host_settings, source=SOURCE))
    return diagnosis(report, set(ignore or ()), everything=all or session.json)


def diagnosis(report: Report, ignored: set[str], *, everything: bool) -> Diagnosis:
    """The fact of ``report``, without findings whose codes are ``ignored``."""
    settings = [
        Setting(name=each.name, value=each.value, source=each.source)
        for each in report.settings if everything or each.source != "default"
    ]  # fmt: skip
    checks = [
        Checked(name=name, detail=one.detail, verdict=_verdict(one.skipped, {each.code for each in one.findings} - ignored))
        for name, one in report.checks.items()
    ]
    findings = [
        Found(code=each.code, level=each.level, what=each.what, hint=each.hint)
        for each in report.findings if each.code not in ignored
    ]  # fmt: skip
    return Diagnosis(settings=settings, checks=checks, findings=findings)


def _verdict(skipped: bool, codes: set[str]) -> str:
    return "found" if codes else "skipped" if skipped else "fine"
