"""Facts as text for people: tables and lines by rich."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from functools import singledispatch
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meshlib.cli import facts, policy_facts, setup_facts
from meshlib.cli.editor import yaml_text


@singledispatch
def text(fact: Any) -> RenderableType:
    """``fact`` to be printed."""
    raise NotImplementedError(type(fact))


@singledispatch
def aside(_fact: Any) -> RenderableType | None:
    """What is said of a fact on standard error."""
    return None


@singledispatch
def raw(_fact: Any) -> bytes | None:
    """What goes to standard output as it is, None for a text."""
    return None


def table(*names: str, rows: Iterable[Iterable[str | Text]]) -> Table:
    """``rows`` under ``names``."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for name in names:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def duration(seconds: float | None) -> str:
    """``seconds`` in the largest unit that fits."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


@text.register
def _(fact: facts.Failure) -> RenderableType:
    said = Text.assemble(("error: ", "bold red"), fact.error.message)
    return Group(said, Text(fact.error.detail)) if fact.error.detail else said


@text.register
def _(fact: facts.Services) -> RenderableType:
    return Text("\n".join(fact.services)) if fact.services else Text(f"no services in {fact.registry}")


_STYLES = {"up": "green", "draining": "yellow", "maintenance": "yellow"}


@text.register
def _(fact: facts.Instances) -> RenderableType:
    if not fact.instances:
        return Text.assemble((f"{fact.service}: no instances", "yellow"), f" ({fact.problem})" if fact.problem else "")
    rows = table("id", "address", "status", "version", "zone", "weight", "labels", rows=map(_instance, fact.instances))
    live = Text("live", "green") if fact.live else Text(f"not live: {fact.problem or 'not watched'}", "yellow")
    known = f"{len(fact.instances)} of {fact.service}, from the {fact.source}, {duration(fact.age)} old, "
    return Group(rows, Text.assemble(known, live))


def _instance(one: facts.Listed) -> Iterable[str | Text]:
    labels = ",".join(f"{key}={value}" for key, value in one.labels.items())
    status = Text("suspect", "red") if one.suspect else Text(one.status, _STYLES.get(one.status, ""))
    address = f"{one.scheme}://" + (f"[{one.host}]" if ":" in one.host else one.host) + f":{one.port}"
    return one.id, address, status, one.version or "-", one.zone or "-", str(one.weight), labels or "-"


@text.register
def _(fact: facts.Explained) -> RenderableType:
    return Text(fact.text)


@raw.register
def _(fact: facts.Answered) -> bytes | None:
    return base64.b64decode(fact.body) if fact.base64 else fact.body.encode()


@aside.register
def _(fact: facts.Answered) -> RenderableType:
    style = "green" if fact.ok else "red"
    said = Text.assemble((str(fact.status), style), f" from {fact.instance or '?'} at {fact.address or '?'}",
                         f" in {fact.seconds * 1000:.1f} ms")  # fmt: skip
    return Group(said, Text(fact.explanation.text)) if fact.explanation else said


@text.register
def _(fact: facts.Registered) -> RenderableType:
    return Text(f"registered {fact.instance.id} at {fact.instance.host}:{fact.instance.port}, until Ctrl-C or SIGTERM")


@text.register
def _(fact: facts.Wishes) -> RenderableType:
    return Group(*map(text, fact.told)) if fact.told else Text("no such instance", "yellow")


@text.register
def _(fact: facts.Told) -> RenderableType:
    if not fact.how:
        return Text.assemble(f"{fact.instance}: ", ("not done", "red"), f": {fact.problem}")
    if not fact.seen:
        return Text.assemble(f"{fact.instance}: ", ("told, not seen yet", "yellow"), f": {fact.problem}")
    return Text.assemble(f"{fact.instance}: ", (fact.wish, "green"))


@text.register
def _(fact: policy_facts.PolicyNames) -> RenderableType:
    return Text("\n".join(fact.services)) if fact.services else Text("no policy documents")


@text.register
def _(fact: policy_facts.Missing) -> RenderableType:
    return Text(f"no {fact.missing}", "yellow")


@raw.register
def _(fact: policy_facts.PolicyDocument) -> bytes | None:
    return yaml_text(fact.content).encode()


@raw.register
def _(_: policy_facts.Put) -> bytes | None:
    return None


@text.register
def _(fact: policy_facts.Put) -> RenderableType:
    if fact.dry:
        return Text(f"fine: a document in the mode {fact.mode}")
    return Text(f"{fact.service}: version {fact.version} ({fact.mode})" + (f": {fact.note}" if fact.note else ""))


@text.register
def _(fact: policy_facts.History) -> RenderableType:
    if not fact.versions:
        return Text(f"{fact.service} has no versions", "yellow")
    rows = [(str(one.version), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.put)), one.mode, one.note or "-")
            for one in fact.versions]  # fmt: skip
    return table("version", "put", "mode", "note", rows=rows)


def colours(diff: str) -> Text:
    """A unified diff, coloured."""
    styles = {"+": "green", "-": "red", "@": "cyan"}
    return Text("\n").join(Text(line, styles.get(line[:1], "")) for line in diff.splitlines())


@text.register
def _(fact: policy_facts.Difference) -> RenderableType:
    return colours(fact.diff) if fact.diff else Text("no difference")


@text.register
def _(fact: policy_facts.Plan) -> RenderableType:
    if not fact.steps:
        return Text("no documents")
    return Group(*(part for step in fact.steps for part in _step(step, fact.dry)))


def _step(step: policy_facts.Applied, dry: bool) -> Iterable[RenderableType]:
    style = {"create": "green", "change": "yellow", "delete": "red"}.get(step.action, "dim")
    version = f" (version {step.version})" if step.version else ""
    said = Text.assemble((f"{step.action:10}", style), f"{step.service}{version}")
    yield Text.assemble(said, (f": not done: {step.problem}", "red")) if step.problem else said
    if dry and step.diff:
        yield colours(step.diff)


@text.register
def _(fact: setup_facts.SnapshotFiles) -> RenderableType:
    if not fact.files:
        return Text(f"no snapshots of {fact.registry} in {fact.directory}", "yellow")
    rows = [
        (one.service, duration(one.age), "-" if one.age is None else str(len(one.instances)),
         f"{'quarantined: ' if one.quarantined else ''}{one.problem}" if one.problem else "fine", one.path)
        for one in fact.files
    ]  # fmt: skip
    return table("service", "age", "instances", "verdict", "file", rows=rows)


@text.register
def _(fact: setup_facts.Carried) -> RenderableType:
    return Text(f"{fact.done} {', '.join(fact.services) or 'nothing'}: {fact.path}")


@text.register
def _(fact: setup_facts.Diagnosis) -> RenderableType:
    parts: list[RenderableType] = []
    if fact.settings:
        parts += [table("setting", "value", "from", rows=((one.name, one.value, one.source) for one in fact.settings)), Text()]
    marks = {"fine": ("ok  ", "green"), "found": ("!!  ", "red"), "skipped": ("-   ", "dim")}
    parts += [Text.assemble(marks[one.verdict], f"{one.name}: ", one.detail) for one in fact.checks]
    parts.append(Text())
    for one in fact.findings:
        parts.append(Text.assemble((f"{one.level} {one.code}: ", "red" if one.level == "error" else "yellow"), one.what))
        parts.append(Text(f"    {one.hint}"))
    parts.append(Text(f"{len(fact.findings)} findings", "red") if fact.findings else Text("nothing found", "green"))
    return Group(*parts)


@text.register
def _(fact: setup_facts.Demonstrated) -> RenderableType:
    if not fact.held:
        return Text.assemble(("FAILED: ", "red"), fact.problem)
    return Text(f"{fact.table}\n\nAll of it held, in {fact.seconds:.0f} s.")


@text.register
def _(fact: setup_facts.Health) -> RenderableType:
    if not fact.parts:
        return Text("the app has no health checks")
    return table("check", "status", "why", rows=((one.name, one.status, one.why or "-") for one in fact.parts))
