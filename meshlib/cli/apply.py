"""``apply``: the policy documents of many services, as files say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from meshlib.cli.policy_facts import Applied, Plan
from meshlib.cli.session import Session
from meshlib.errors import ConfigError, RegistryError
from meshlib.governance import desired
from meshlib.governance.desired import Step
from meshlib.governance.policies import Policies


def apply(
    session: Session,
    *,
    file: Annotated[list[str], typer.Option("--file", "-f", help="A file or a directory; - is standard input. Several times.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete the documents of this namespace that the files lack.")] = False,
    note: Annotated[str | None, typer.Option("--note", help="Why.")] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="With --dry-run: exit with 1 if anything is to be done.")
    ] = False,
) -> Plan:
    """Make the policy documents what files say: create, change, and (with --prune only) delete. Everything is checked before
    anything is done; what is as it should be is left alone."""
    namespace = session.settings.namespace
    wanted = desired.wanted(texts(file), namespace=namespace)

    async def work(policies: Policies) -> Plan:
        steps = await desired.plan(policies, wanted, prune=prune, namespace=namespace)
        if dry_run:
            return Plan(dry=True, steps=[_fact(step) for step in steps], asked=exit_code)
        return Plan(dry=False, steps=[await _done(policies, step, note) for step in steps])

    with session.busy("applying"):
        return session.policies(work)


def texts(names: list[str]) -> list[tuple[str, bytes]]:
    """What the files say, with their names. Raises :class:`ConfigError`."""
    found = []
    for name in names:
        if name == "-":
            found.append(("standard input", sys.stdin.buffer.read()))
            continue
        for path in desired.files(Path(name)):
            try:
                found.append((str(path), path.read_bytes()))
            except OSError as problem:
                raise ConfigError(
                    str(path), f"cannot be read: {problem.strerror}", source="command line", example="a file"
                ) from None
    return found


async def _done(policies: Policies, step: Step, note: str | None) -> Applied:
    try:
        document = await desired.perform(policies, step, note=note)
    except RegistryError as problem:
        return _fact(step, problem=str(problem))
    return _fact(step, done=True, version=document.version if document else step.version)


def _fact(step: Step, *, done: bool = False, version: int | None = None, problem: str = "") -> Applied:
    number = step.version if version is None else version
    return Applied(
        service=str(step.service), action=step.action, version=max(0, number), diff=step.diff, done=done, problem=problem
    )
