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


def written(room: Path) -> None:
    for name, content in FILES.items():
        (room / name).write_text(content)


def commands() -> list[list[str]]:
    """The shell blocks that serve a framework's provider, and call it."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [block.splitlines() for block in blocks if "_provider" in block]


@pytest.mark.parametrize("lines", commands(), ids=lambda lines: lines[0].split()[1])
def test_framework(lines: list[str], tmp_path: Path) -> None:
    """As it stands there, but for the ports, and for waiting until it is there."""
    written(tmp_path)
    ports = {port: str(free_port()) for port in ("5001", "5002")}
    env = {
        **os.environ,
        "MESH_STATE_DIR": str(tmp_path / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    *servers, pause, last = [re.sub("500[12]", lambda found: ports[found[0]], line) for line in lines]
    assert pause.startswith("sleep ")
    running = [start(line.removesuffix(" &"), tmp_path, env) for line in servers]

    def answered() -> bool:
        done = subprocess.run(last.split(), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False)
        return "tea" in done.stdout and "7" in done.stdout

    try:
        eventually(answered, within=30, what=f"{last} shows the order")
    finally:
        for each in running:
            each.terminate()
            each.wait()


def start(line: str, room: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    own = dict(word.split("=", 1) for word in line.split() if word.startswith("MESH_"))
    words = [word for word in line.split() if not word.startswith("MESH_")]
    return subprocess.Popen(words, cwd=room, env={**env, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_every_file_of_the_readme_is_run() -> None:
    ran = "\n".join(line for lines in commands() for line in lines)
    assert {name for name in FILES if name.removesuffix(".py") not in ran} <= {"provider.py", "consumer.py"}


def test_quick_start(tmp_path: Path) -> None:
    written(tmp_path)
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
