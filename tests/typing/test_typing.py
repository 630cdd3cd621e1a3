"""What type checkers say of consumers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def mypy(file: str, cache: Path) -> str:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "--no-error-summary",
               f"--cache-dir={cache}", str(HERE / file)]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False).stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def test_a_consumer_is_clean(cache: Path) -> None:
    assert mypy("consumer.py", cache) == ""


def test_mistakes_are_found_where_they_are(cache: Path) -> None:
    lines = (HERE / "mistakes.py").read_text().splitlines()
    expected = {(number, line.rpartition("# error: ")[2]) for number, line in enumerate(lines, 1) if "# error: " in line}
    said = mypy("mistakes.py", cache)
    found = {(int(number), code) for number, code in re.findall(r":(\d+): error: .*\[([a-z-]+)\]$", said, re.MULTILINE)}
    assert found == expected, said
