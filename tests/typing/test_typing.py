"""What type checkers say of consumers: nothing where they are right, and where they are wrong what each of the two is expected
to say. Each runs once, over all files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("consumer.py", "decorators.py", "mocking.py", "mistakes.py")
CLEAN = FILES[:-1]

Said = dict[str, dict[int, set[str]]]
"""By the name of a file and the number of a line: the codes of the errors there."""


def run(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    ).stdout


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Said:
    pytest.importorskip("mypy")
    cache = tmp_path_factory.mktemp("mypy")
    output = run("mypy", "--strict", "--follow-imports=silent", "--config-file=", "--no-error-summary", f"--cache-dir={cache}",
                 *(str(HERE / file) for file in FILES))  # fmt: skip
    said: Said = defaultdict(lambda: defaultdict(set))
    for file, number, code in re.findall(r"(\w+\.py):(\d+): error: .*\[([a-z-]+)\]$", output, re.MULTILINE):
        said[file][int(number)].add(code)
    assert said["mistakes.py"], output
    return said


@pytest.fixture(scope="module")
def pyright() -> Said:
    pytest.importorskip("pyright")
    output = run("pyright", "--outputjson", "--pythonpath", sys.executable, *(str(HERE / file) for file in FILES))
    said: Said = defaultdict(lambda: defaultdict(set))
    for each in json.loads(output)["generalDiagnostics"]:
        if each["severity"] == "error":
            said[Path(each["file"]).name][each["range"]["start"]["line"] + 1].add(each.get("rule", "syntax"))
    assert said["mistakes.py"], output
    return said


def expected(column: int) -> dict[int, set[str]]:
    """What ``# E: <mypy's> <pyright's>`` says for one of the two."""
    found = {}
    for number, line in enumerate((HERE / "mistakes.py").read_text().splitlines(), 1):
        _, marked, codes = line.partition("  # E: ")
        if marked and codes.split()[column] != "-":
            found[number] = set(codes.split()[column].split(","))
    return found


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("file", CLEAN)
def test_what_is_right_is_clean(checker: str, file: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(checker)[file] == {}


@pytest.mark.parametrize(("column", "checker"), [(0, "mypy"), (1, "pyright")])
def test_mistakes_are_found_where_they_are(column: int, checker: str, request: pytest.FixtureRequest) -> None:
    assert dict(request.getfixturevalue(checker)["mistakes.py"]) == expected(column)


def test_there_are_many() -> None:
    assert min(len(expected(0)), len(expected(1))) >= 60
