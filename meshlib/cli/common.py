"""How a function becomes a command: the options that all have, the session, the answer, the exit code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Concatenate, Final, ParamSpec, TypeVar, get_type_hints

import typer

from meshlib.cli import NO, OK, WRONG
from meshlib.cli.facts import Failure, Problem
from meshlib.cli.session import Session
from meshlib.errors import CallError, ConfigError, MeshError, RegistryUnavailable
from meshlib.mesh import Mesh

P = ParamSpec("P")
F = TypeVar("F")

COMMON: Final = "Settings and output"


def _option(name: str, help: str, **more: Any) -> Any:
    return Annotated[more.pop("type", str) | None, typer.Option(name, help=help, rich_help_panel=COMMON, show_default=False)]


OPTIONS: Final[Mapping[str, Any]] = {
    "registry": _option("--registry", "Where instances are listed, as MESH_REGISTRY."),
    "namespace": _option("--namespace", "app.env, as MESH_NAMESPACE."),
    "state_dir": _option("--state-dir", "Directory of the disk snapshots, as MESH_STATE_DIR."),
    "registry_token_file": _option("--token-file", "File with the registry's token, as MESH_REGISTRY_TOKEN_FILE."),
    "registry_timeout": _option("--registry-timeout", "Seconds the registry has for one answer, as MESH_REGISTRY_TIMEOUT."),
}
"""Every other setting has its environment variable."""
JSON: Final = Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=COMMON)]


@dataclass
class Frame:
    """What is known before the command: the app's mesh, if there is one, and the options that stand before its name.
    ``json`` is what was asked for in the end."""

    host: Mesh | None = None
    given: dict[str, str] = field(default_factory=dict)
    json: bool = False

    def take(self, values: dict[str, Any]) -> None:
        """Take the common options out of ``values``."""
        self.json = values.pop("json") or self.json
        taken = {name: values.pop(name) for name in OPTIONS}
        self.given.update({name: value for name, value in taken.items() if value is not None})


Work = Callable[Concatenate[Session, P], Any]


def command(app: typer.Typer, name: str | None = None, **options: Any) -> Callable[[Work[P]], Work[P]]:
    """Have a function of a :class:`Session` as a command of ``app``. What it returns is the answer: a fact, None for one that
    has said everything. Its errors become answers, too."""

    def decorate(work: Work[P]) -> Work[P]:
        def perform(ctx: typer.Context, **values: Any) -> None:
            frame = ctx.ensure_object(Frame)
            frame.take(values)
            session = Session(frame.host, frame.given, json=frame.json)
            raise typer.Exit(answered(session, lambda: work(session, **values)))  # type: ignore[call-arg]

        _dress(perform, work)
        app.command(name, **options)(perform)
        return work

    return decorate


def before(app: typer.Typer, *, version: Any) -> None:
    """Have the common options, and ``--version``, before the name of a command of ``app``."""

    def perform(ctx: typer.Context, **values: Any) -> None:
        del values["version"]  # an eager one, which has been seen to
        ctx.ensure_object(Frame).take(values)

    perform.__doc__ = app.info.help
    dress(perform, [inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, annotation=version, default=False)])
    app.callback()(perform)


def _dress(perform: Any, work: Callable[..., Any]) -> None:
    """Give ``perform`` the name, the words and the parameters of ``work``, and the common ones."""
    hints = get_type_hints(work, include_extras=True)
    _, *own = inspect.signature(work).parameters.values()
    perform.__name__, perform.__doc__, perform.__module__ = work.__name__, work.__doc__, work.__module__
    dress(perform, [each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name]) for each in own])


def dress(perform: Any, own: list[inspect.Parameter]) -> None:
    """Give ``perform`` the parameters ``own`` and the common ones, for typer to see."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context), *own]
    parameters += [inspect.Parameter(name, keyword, annotation=kind, default=None) for name, kind in OPTIONS.items()]
    parameters.append(inspect.Parameter("json", keyword, annotation=JSON, default=False))
    perform.__signature__ = inspect.Signature(parameters)
    perform.__annotations__ = {each.name: each.annotation for each in parameters}


def answered(session: Session, work: Callable[[], Any]) -> int:
    """Perform ``work``, say what it found, and return the exit code."""
    try:
        fact = work()
    except ConfigError as problem:
        return fail(session, problem, WRONG)
    except (MeshError, TimeoutError) as problem:
        return fail(session, problem, NO, _hint(session) if isinstance(problem, (RegistryUnavailable, TimeoutError)) else "")
    if fact is None:
        return OK
    session.say(fact)
    return OK if getattr(fact, "ok", True) else NO


def _hint(session: Session) -> str:
    settings = session.settings
    return f"; is MESH_REGISTRY={settings.registry} (from {settings.source('registry')}) right? mesh doctor looks"


def fail(session: Session, problem: Exception, code: int, hint: str = "") -> int:
    """Say that it came to ``problem``, and return ``code``."""
    session.say(failure(problem, hint), to_stderr=True)
    return code


def failure(problem: Exception, hint: str = "") -> Failure:
    """The fact that it came to ``problem``; ``hint`` is the end of its message."""
    kind = type(problem).__name__
    detail = problem.explain() if isinstance(problem, CallError) else ""
    message = f"{str(problem) or 'no answer in time'}{hint}"
    if isinstance(problem, ConfigError):
        return Failure(error=Problem(kind=kind, message=message, name=problem.name, source=problem.source,
                                     example=problem.example))  # fmt: skip
    return Failure(error=Problem(kind=kind, message=message, detail=detail))


def misused(message: str, *, json: bool) -> int:
    """Say what is wrong with the command line itself: as the document, for its text has been said already."""
    if json:
        Session(None, {}, json=True).say(Failure(error=Problem(kind="UsageError", message=message)))
        sys.stdout.flush()
    return WRONG
