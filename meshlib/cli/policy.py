"""``policy …``: the rules of running processes, looked at and changed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from meshlib.cli.arguments import Name
from meshlib.cli.calls import read
from meshlib.cli.editor import Edited, edited, yaml_text
from meshlib.cli.policy_facts import Difference, History, Missing, PastVersion, PolicyDocument, PolicyNames, Put
from meshlib.cli.session import Session
from meshlib.errors import ConfigError
from meshlib.governance.desired import difference, normal
from meshlib.governance.document import Document
from meshlib.governance.policies import Policies
from meshlib.governance.text import plain
from meshlib.model import ServiceUrl

File = Annotated[str, typer.Option("--file", "-f", help="The document, JSON or YAML; - is standard input.")]
MaybeFile = Annotated[str | None, typer.Option("--file", "-f", help="A document, JSON or YAML; - is standard input.")]
Expected = Annotated[
    int | None, typer.Option("--expected", metavar="VERSION", help="Only if that is the version now; 0: only if there is none.")
]
Note = Annotated[str | None, typer.Option("--note", help="Why.")]


def names(session: Session) -> PolicyNames:
    """List the services that have a policy document."""
    return PolicyNames(services=session.policies(lambda policies: policies.names()))


def get(session: Session, name: Name) -> PolicyDocument | Missing:
    """Print the policy document of a service."""
    document = session.policies(lambda policies: policies.get(name))
    return _missing(session, name) if document is None else PolicyDocument.of(document)


def put(
    session: Session,
    name: Name,
    file: File,
    expected: Expected = None,
    note: Note = None,
) -> Put:
    """Put a policy document in force, as the next version. What is wrong with it is said with the path of the field."""
    content = read(file)
    checked(ServiceUrl.parse(name, namespace=session.settings.namespace), content, file)
    return _put(session.policies(lambda policies: policies.put(name, content, expected=expected, note=note)))


def _put(document: Document, *, dry: bool = False) -> Put:
    fact = PolicyDocument.of(document)
    return Put(**{field: getattr(fact, field) for field in fact.__struct_fields__}, dry=dry)


def validate(session: Session, file: File, name: Annotated[str, typer.Argument(metavar="[NAME]")] = "") -> Put:
    """Check a document without putting it. Nothing is asked of the registry."""
    content = read(file)
    data = plain(content, file)
    service = ServiceUrl.parse(name or str(data.get("service") or "any"), namespace=session.settings.namespace)
    return _put(checked(service, content, file), dry=True)


def checked(service: ServiceUrl, content: Any, source: str = "the document") -> Document:
    """The document that ``content``, which is from ``source``, would be. Raises :class:`ConfigError`."""
    nowhere: Any = None  # checking needs no store
    return Policies(nowhere, namespace=service.namespace).validate(service, content, source=source)


def edit(session: Session, name: Name, note: Note = None) -> Put | Missing:
    """Edit the policy document of a service with $VISUAL or $EDITOR. It is put only if it is right, and if nobody else has put
    one meanwhile."""
    service = ServiceUrl.parse(name, namespace=session.settings.namespace)
    now = session.policies(lambda policies: policies.get(service))
    before = yaml_text(normal(now.content)) if now else "consumer:\n  policies: {}\n"
    after: Edited = edited(before, name=str(service), check=lambda text: checked(service, text))
    if after.text is None:
        return Missing(missing="change: nothing was put")
    text, version = after.text, now.version if now else 0
    try:
        document = session.policies(lambda policies: policies.put(service, text, expected=version, note=note))
    except Exception:
        sys.stderr.write(f"your text is kept in {after.keep()}\n")
        raise
    after.drop()
    return _put(document)


def diff(
    session: Session,
    name: Name,
    *,
    old: Annotated[int | None, typer.Argument(metavar="[OLD]", help="A version; default: the one before the last.")] = None,
    new: Annotated[int | None, typer.Argument(metavar="[NEW]", help="Another one; default: the one in force.")] = None,
    file: MaybeFile = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if there is a difference.")] = False,
) -> Difference:
    """Show what changed between two versions, or what a file would change."""
    service = ServiceUrl.parse(name, namespace=session.settings.namespace)
    if file is not None:
        found = _against(session, service, read(file))
    else:
        found = session.policies(lambda policies: _between(policies, service, old, new))
    return Difference(service=str(service), diff=found, asked=exit_code)


def _against(session: Session, service: ServiceUrl, content: bytes) -> str:
    wanted = checked(service, content).content
    now = session.policies(lambda policies: policies.get(service))
    before = normal(now.content, note="note" in wanted) if now else {}
    return difference(before, normal(wanted), (f"version {now.version}" if now else "none", "the file"))


async def _between(policies: Policies, service: ServiceUrl, old: int | None, new: int | None) -> str:
    if old is None:
        kept = await policies.history(service)
        if not kept:
            raise ConfigError("NAME", f"{service} has no policy document", source="command line", example="orders")
        if len(kept) == 1:
            return difference({}, dict(kept[0].content), ("none", f"version {kept[0].version}"))
        old = kept[1].version
    return await policies.diff(service, old, new)


def history(session: Session, name: Name) -> History:
    """List the versions of a policy document that are kept."""
    found = session.policies(lambda policies: policies.history(name))
    versions = [
        PastVersion(version=one.version, put=one.put, mode=str(one.content.get("mode") or "enforce"), note=one.note)
        for one in found
    ]
    return History(service=_named(session, name), versions=versions)


def rollback(
    session: Session, name: Name, version: Annotated[int, typer.Argument(metavar="VERSION")], expected: Expected = None
) -> Put:
    """Put an earlier version in force again, as a new one."""
    return _put(session.policies(lambda policies: policies.rollback(name, version, expected=expected)))


def delete(
    session: Session, name: Name, expected: Expected = None, note: Annotated[str, typer.Option("--note")] = "deleted"
) -> Put:
    """Have the policies of the code alone hold again: an empty document is put."""
    return _put(session.policies(lambda policies: policies.delete(name, expected=expected, note=note or "deleted")))


def shadow(
    session: Session,
    name: Name,
    file: MaybeFile = None,
    off: Annotated[bool, typer.Option("--off", help="Enforce it.")] = False,
    note: Note = None,
) -> Put | Missing:
    """Put a document, or the one in force, in shadow mode: what it would refuse is counted, and goes on. Then, with --off,
    enforce it."""
    service = ServiceUrl.parse(name, namespace=session.settings.namespace)
    given = None if file is None else plain(read(file), file)
    mode = "enforce" if off else "shadow"

    async def change(policies: Policies) -> Document | None:
        now = await policies.get(service)
        if now is None and given is None:
            return None
        content = given if given is not None else normal(now.content, note=False) if now else {}
        content = {key: value for key, value in content.items() if key not in ("version", "service")}
        return await policies.put(service, {**content, "mode": mode}, expected=now.version if now else 0, note=note)

    document = session.policies(change)
    return _missing(session, name) if document is None else _put(document)


def _named(session: Session, name: str) -> str:
    return str(ServiceUrl.parse(name, namespace=session.settings.namespace))


def _missing(session: Session, name: str) -> Missing:
    return Missing(missing=f"policy document of {_named(session, name)}")
