"""Runs the fences of a Markdown page as a reader would: from top to bottom, in one directory, in one shell.

| fence | what is done with it |
|---|---|
| any language with ``title="NAME"``, or Python whose first line is ``# NAME.py`` | written to the file ``NAME`` |
| `python` | executed in this process, with warnings as errors |
| `sh` | executed in the page's shell; no command may fail |
| `text title="prints"` | not executed: lines that the fence before it must have printed, `…` for anything |
| other languages (`text`, `java`, `yaml`, …) | not executed |

Three things differ from a terminal. Ports are exchanged for free ones. ``pip install`` is left out: what it installs is there
(a test of the README installs it for real). And ``sleep``, by which a reader waits until a server is up, waits as long as it
takes: what follows it in its fence is tried again until no command fails and it prints what it should.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.servers.base import eventually, free_port

TOP: Final = Path(__file__).parents[1]
PORTS: Final = ("5001", "5002", "5003", "8081", "8082", "8083")
"""Those on which the providers and consumers of pages listen."""
PRINTS: Final = "prints"
WITHIN: Final = 60.0
"""Seconds in which what a page waits for has to happen."""
LANGUAGES: Final = frozenset({"python", "sh", "text", "yaml", "json", "java", "ini", "properties"})

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<lang>\w*) *(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
TITLE = re.compile(r'title="([^"]+)"')
NAMED = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Fence:
    """One fence; ``title`` is empty where it has none."""

    lang: str
    title: str
    body: str
    line: int


def fences(text: str) -> list[Fence]:
    """All of a page."""
    return [_fence(found, text.count("\n", 0, found.start()) + 1) for found in FENCE.finditer(text)]


def _fence(found: re.Match[str], line: int) -> Fence:
    body = textwrap.dedent(found["body"])
    title = TITLE.search(found["info"]) or (NAMED.match(body) if found["lang"] == "python" else None)
    return Fence(found["lang"], title[1] if title else "", body, line)


class Room:
    """Where a page runs. ``env`` is laid over this process's environment; ``exchange`` replaces texts of the page."""

    def __init__(
        self, directory: Path, *, env: Mapping[str, str] | None = None, exchange: Mapping[str, str] | None = None
    ) -> None:
        directory.chmod(0o700)
        self.directory = directory
        (directory / ".mesh").mkdir(mode=0o700, exist_ok=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {"PATH": path, "MESH_STATE_DIR": str(directory / ".mesh"), "PYTHONUNBUFFERED": "1", **(env or {})}
        free = map(str, sorted(free_port() for _ in PORTS))
        self._exchange = {**dict(zip(PORTS, free, strict=True)), **(exchange or {})}
        self._shell = Shell(directory, self.env)
        self._begun = 0

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.close()

    def run(self, page: Sequence[Fence], name: str = "page") -> None:
        """Run all fences of ``page`` in turn."""
        for place, fence in enumerate(page):
            after = page[place + 1] if place + 1 < len(page) else None
            wanted = after.body if after is not None and after.title == PRINTS else ""
            try:
                self._one(fence, self.exchanged(wanted))
            except BaseException as problem:
                problem.add_note(f"in the fence at line {fence.line} of {name}:\n{self.exchanged(fence.body)}")
                raise

    def exchanged(self, text: str) -> str:
        """``text`` with this room's ports."""
        for old, new in self._exchange.items():
            text = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, text) if old.isdigit() else text.replace(old, new)
        return text

    def _one(self, fence: Fence, wanted: str) -> None:
        body = self.exchanged(fence.body)
        if fence.title and fence.title != PRINTS:
            (self.directory / fence.title).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / fence.title).write_text(body)
        elif fence.lang == "python":
            said = self._python(body, fence.line)
            assert printed(wanted, said), f"it printed:\n{said}"
        elif fence.lang == "sh":
            self._commands(body, wanted)

    def _python(self, body: str, line: int) -> str:
        path = self.directory / f"snippet_at_line_{line}.py"
        path.write_text(body)
        said = io.StringIO()
        with contextlib.chdir(self.directory), self._environment(), contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("error")
            runpy.run_path(str(path))
        return said.getvalue()

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """This process as one that has been started in the room; modules of the room are forgotten afterwards."""
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(self.directory))
            for name in [name for name in os.environ if name.startswith("MESH_")]:
                patch.delenv(name)
            for name, value in self.env.items():
                patch.setenv(name, value)
            yield
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(self.directory)):
                del sys.modules[name]

    def _commands(self, body: str, wanted: str) -> None:
        first, *after = re.split(r"^sleep .*\n", "\n".join(filter(here, body.splitlines())) + "\n", flags=re.MULTILINE)
        said = self._shell.run(first, must=True) if first.strip() else ""
        for section in after:
            assert not re.search(r"&\s*$|\bkill\b", section, re.MULTILINE), (
                "what follows a sleep is repeated: begin a new fence"
            )
            said = self._until(section, wanted if section is after[-1] else "")
        assert printed(wanted, said), f"it printed:\n{said}"

    def _until(self, section: str, wanted: str) -> str:
        said = failed = ""

        def done() -> bool:
            nonlocal said, failed
            said, failed = self._shell.try_(section)
            return (not failed and printed(wanted, said)) or bool(time.sleep(0.2))

        eventually(
            done, within=WITHIN, what=lambda: f"{section}it failed at {failed!r}, and printed:\n{said}\n{self._shell.log()}"
        )
        return said


class Shell:
    """A bash that lives as long as the page, so that its jobs and variables do."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        self._directory, self._runs = directory, 0
        self._bash = subprocess.Popen(
            ["bash", "--norc"], cwd=directory, env={**inherited, **env}, stdin=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def run(self, text: str, *, must: bool) -> str:
        """Execute ``text`` and return what it printed."""
        said, failed = self.try_(text)
        assert not (must and failed), f"it failed at {failed!r}, and printed:\n{said}\n{self.log()}"
        return said

    def try_(self, text: str) -> tuple[str, str]:
        """Execute ``text``; what it printed, and the commands that failed."""
        self._runs += 1
        script, out, failed, done = (self._directory / f".{self._runs}.{kind}" for kind in ("sh", "out", "failed", "done"))
        script.write_text(f"trap 'echo \"$BASH_COMMAND\" >> {failed}' ERR\n{text}\ntrap - ERR\n")
        assert self._bash.stdin is not None
        self._bash.stdin.write(f". {script} > {out} 2>&1 < /dev/null; : > {done}\n")
        self._bash.stdin.flush()
        eventually(done.exists, within=WITHIN, what=lambda: f"the end of\n{text}\nIt printed:\n{out.read_text()}")
        return out.read_text(), failed.read_text() if failed.exists() else ""

    def log(self) -> str:
        """The end of all that was printed, by what runs in the background, too."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._directory.glob(".*.out")))[-6000:]

    def close(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait()
        assert self._bash.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._bash.stdin.close()


def here(line: str) -> bool:
    """False for lines of a shell fence that are no business of a page's test: CI makes what they name by itself."""
    return not line.startswith(("pip install ", "make "))


def printed(wanted: str, said: str) -> bool:
    """True if every line of ``wanted`` is one of ``said``; ``…`` stands for anything."""
    lines = [line.rstrip() for line in said.splitlines()]
    return all(any(_like(one.strip()).search(line) for line in lines) for one in wanted.splitlines() if one.strip())


def _like(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, line.split("…"))))
