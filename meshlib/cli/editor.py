"""A text in the user's editor, until it is right or given up."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshlib.errors import ConfigError

HEAD = "# The policy document of {name}. Save it empty, or as it was, to leave everything as it is.\n"


class Edited:
    """``text`` is what came of it, None for no change. Its file stays until :meth:`drop`."""

    def __init__(self, path: Path, text: str | None) -> None:
        self.path, self.text = path, text

    def keep(self) -> Path:
        """Where the text is."""
        return self.path

    def drop(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink()


def edited(text: str, *, name: str, check: Callable[[str], object]) -> Edited:
    """Have the user edit ``text`` until ``check`` does not raise :class:`ConfigError`; where nobody can be asked to try again,
    that is raised, and the file is kept."""
    handle, file = tempfile.mkstemp(prefix="meshlib-policy-", suffix=".yaml")  # private: mode 0600
    path = Path(file)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(HEAD.format(name=name) + text)
    while True:
        _edit(path)
        after = _without_comments(path.read_text(encoding="utf-8"))
        if not after.strip() or after.strip() == _without_comments(text).strip():
            path.unlink()
            return Edited(path, None)
        try:
            check(after)
            return Edited(path, after)
        except ConfigError as wrong:
            sys.stderr.write(f"{wrong}\n")
            if not sys.stdin.isatty() or not _again():
                sys.stderr.write(f"your text is kept in {path}\n")
                raise


def _edit(path: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        done = subprocess.run([*shlex.split(editor), str(path)], check=False)  # noqa: S603 - the user's own editor
    except (OSError, ValueError) as problem:
        raise ConfigError(
            "EDITOR", f"{editor[:80]!r} cannot be started: {problem}", source="environment", example="nano"
        ) from None
    if done.returncode:
        path.unlink()
        raise ConfigError("EDITOR", f"{editor[:80]!r} ended with {done.returncode}: nothing was put", source="environment",
                          example="nano")  # fmt: skip


def _again() -> bool:
    sys.stderr.write("edit it again? [Y/n] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() not in ("n", "no")


def _without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))


def yaml_text(content: Mapping[str, Any]) -> str:
    """``content`` as YAML, or as JSON (which is YAML, too) where the library is missing."""
    try:
        import yaml  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError:
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return str(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, default_flow_style=False))
