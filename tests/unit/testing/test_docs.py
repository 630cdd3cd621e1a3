"""The examples of docs/testing.md are tests, and pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import meshlib.testing.memory  # noqa: F401 - what is imported already, the runs inside of this one share

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[3] / "docs" / "testing.md").read_text()
(CLIENT,) = re.findall(r"```python title=\"shop.py\"\n(.*?)```", PAGE, re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"def (test_\w+)", block)[0])
def test_examples(pytester: pytest.Pytester, block: str) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n")
    pytester.makepyfile(shop=CLIENT, test_page=block)
    wanted = len(re.findall(r"def test_", block))
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=wanted)


def test_every_block_is_one_of_these() -> None:
    assert PAGE.count("```python") == len(BLOCKS) + 1 > 4
