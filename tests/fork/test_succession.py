"""Whether the last worker is about to be replaced: told by a gunicorn master that still listens, and by nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshlib.discovery import succession

ROOT = Path(__file__).resolve().parents[2]

# A parent that listens or not, and its child, which has closed its own copy of the socket, as most workers have at their end.
PROGRAM = """
import os, socket, sys
sys.modules["gunicorn.arbiter"] = sys
from meshlib.discovery.succession import successor_expected
listener, other = socket.create_server(("127.0.0.1", 0)), socket.socket()
port = listener.getsockname()[1]
if "closed" in sys.argv:
    listener.close()
    other.bind(("127.0.0.1", port))  # so that nobody else of this machine listens there
if "other" in sys.argv:
    other.bind(("127.0.0.1", 0))
    port = other.getsockname()[1]
if "unknown" in sys.argv:
    del sys.modules["gunicorn.arbiter"]
child = os.fork()
if child == 0:
    listener.close()
    os._exit(successor_expected(0 if "none" in sys.argv else port))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(
    ("case", "expected"), [("listening", "1"), ("closed", "0"), ("other", "0"), ("unknown", "0"), ("none", "0")]
)
def test_in_a_child(case: str, expected: str) -> None:
    command = [sys.executable, "-c", PROGRAM, case]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == expected


def test_where_nothing_tells_it_is_not_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError

    monkeypatch.setitem(sys.modules, "gunicorn.arbiter", sys)
    monkeypatch.setattr(succession, "table", refuse)
    assert not succession.successor_expected(80)
