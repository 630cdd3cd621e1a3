"""The demo tells whether what it shows holds."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.faults.stage import TOP


def demo(**env: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "examples/demo.py"], cwd=TOP, env={**os.environ, **env}, text=True,
                          capture_output=True, timeout=300, check=False)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_demo_succeeds() -> None:
    status, said = demo()
    assert status == 0, said
    assert "All of it held" in said


def test_the_demo_fails_when_the_snapshot_is_refused() -> None:
    status, said = demo(MESH_SNAPSHOT_MAX_AGE="0.001")
    assert status != 0, said
    assert "FAILED" in said
