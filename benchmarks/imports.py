"""What importing meshlib adds to importing httpx2: whole interpreters, in turn, bytecode cached as after any first run."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.measure import Row

ROUNDS = 21
BAR_MS = 15.0
USE = "from meshlib import Mesh, service_client, get"
CODE = """
import time
import httpx2
start = time.perf_counter()
{then}
print((time.perf_counter() - start) * 1e3)
"""


def rows() -> list[Row]:
    """The time from httpx2 imported to meshlib imported; beside it the whole start of each, and what using it loads."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return _rows(environment)


def _rows(environment: dict[str, str]) -> list[Row]:
    def run(code: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    def start(code: str) -> float:
        return float(run(f"import time; start = time.perf_counter()\n{code}\nprint((time.perf_counter() - start) * 1e3)"))

    added, httpx2_only, both, names = [], [], [], []
    run(USE)
    for _ in range(ROUNDS):
        httpx2_only.append(start("import httpx2"))
        both.append(start("import httpx2, meshlib"))
        added.append(float(run(CODE.format(then="import meshlib"))))
        names.append(float(run(CODE.format(then=USE))))
    return [
        Row("python -c 'import httpx2'", statistics.median(httpx2_only), "ms"),
        Row("python -c 'import httpx2, meshlib'", statistics.median(both), "ms"),
        Row("added by importing meshlib after httpx2", statistics.median(added), "ms", None, BAR_MS),
        Row(f"added by {USE!r}", statistics.median(names), "ms"),
    ]
