"""Another process that shares files with siblings: answers each line of JSON ``[file, method, …]`` with one of JSON.

``file`` has a :class:`~meshlib.discovery.siblings.Siblings` of its own, made anew after ``close``. "die" ends it as the death
of the process would: its descriptor is closed, and nothing else is done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from meshlib.discovery.siblings import Record, Siblings
from meshlib.errors import MeshError
from meshlib.model import Status

TOP = Path(__file__).resolve().parents[2]


def perform(group: Siblings, method: str, *args: Any) -> Any:
    match method:
        case "look":
            standing = group.look()
            record = standing.record
            return [standing.registrar, record.id, record.generation, record.status.value, record.listed, standing.quiet]
        case "wish":
            group.wish(Status(args[0]))
        case "die":
            group._left = False
            group.close()
        case "fork":  # a child that knows nothing of it: it inherits the descriptors, and stays
            return os.fork() or _idle()
        case _:
            return getattr(group, method)()
    return None


def _idle() -> None:
    for stream in (0, 1, 2):
        os.close(stream)
    signal.alarm(60)
    while True:
        signal.pause()


def main() -> None:
    groups: dict[str, Siblings] = {}
    for line in sys.stdin:
        file, name, method, *args = json.loads(line)
        group = groups.setdefault(file, Siblings(Path(file), Record("shop-1", name)))
        try:
            said = perform(group, method, *args)
        except (OSError, ValueError, MeshError) as problem:
            said = f"{type(problem).__name__}: {problem}"
        if method in ("die", "close"):
            groups.pop(file)
        print(json.dumps(said), flush=True)


class Sibling:
    """That process, from outside. Each new membership proposes a generation of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "tests.servers.sibling"], cwd=TOP, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def ask(self, file: Path, method: str, *args: Any, proposes: str = "g") -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(file), proposes, method, *args]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    main()
