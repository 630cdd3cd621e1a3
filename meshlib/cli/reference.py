"""The reference of the commands as Markdown, made from what they say of themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from meshlib.cli.app import app
from meshlib.cli.common import OPTIONS

SHARED = {*OPTIONS, "json", "help"}


def reference() -> str:
    """All commands, each with what it does and its own options."""
    return "\n".join(_lines("mesh", typer.main.get_command(app)))


def _lines(words: str, command: Any) -> Iterator[str]:
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from _lines(f"{words} {name}", each)
            continue
        arguments = [_argument(one) for one in each.params if one.param_type_name == "argument"]
        yield f"### `{' '.join([f'{words} {name}', *arguments])}`\n"
        yield f"{inspect.cleandoc(each.help or '')}\n"
        options = [one for one in each.params if one.param_type_name == "option" and one.name not in SHARED]
        yield from (f"- `{_option(one)}`{f': {one.help}' if one.help else ''}" for one in options)
        if options:
            yield ""


def _argument(one: Any) -> str:
    return str(one.metavar or one.name.upper())


def _option(one: Any) -> str:
    value = "" if one.is_flag else f" {one.metavar or one.name.upper()}"
    return "`, `".join([*one.opts]) + value
