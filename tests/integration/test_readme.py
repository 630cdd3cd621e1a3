"""The README is executed: its quick start as a newcomer would run it, and every other Python block; so are those of docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.base import eventually, free_port

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
POLICIES = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
FILES = {block.split("\n", 1)[0].removeprefix("# "): block for block in BLOCKS if block.startswith("# ")}


SNIPPETS = [block for block in BLOCKS if not block.startswith("# ")] + re.findall(r"```python\n(.*?)```", POLICIES, re.DOTALL)


@pytest.mark.parametrize("block", SNIPPETS)
def test_snippet_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(block)
    subprocess.run([sys.executable, "-W", "error", "snippet.py"], cwd=tmp_path, check=True, timeout=30)


def test_quick_start(tmp_path: Path) -> None:
    assert set(FILES) == {"provider.py", "consumer.py"}
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    env = {**os.environ, "MESH_STATE_DIR": str(tmp_path / "state")}
    providers = [
        subprocess.Popen(
            [sys.executable, "provider.py"],
            cwd=tmp_path,
            env={**env, "MESH_SERVICE": "orders", "MESH_PORT": str(free_port())},
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "consumer.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False
        )

    try:
        eventually(lambda: call().stdout == "Order(id=7, item='tea')\n", within=20, what="the consumer prints the order")
    finally:
        for provider in providers:
            provider.kill()
            provider.wait()


def test_settings_named_in_the_docs_exist() -> None:
    from meshlib.settings import env_name, knobs

    known = {env_name(knob.name) for knob in knobs()}
    pages = [README, *(page.read_text() for page in (Path(__file__).parents[2] / "docs").glob("*.md"))]
    named = {name for page in pages for name in re.findall(r"MESH_[A-Z]+(?:_[A-Z]+)*", page)}
    assert named <= known, named - known
