"""A registry in memory of its own for each test, and the command line on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from meshlib.backends.memory import Store, store
from meshlib.cli import run
from meshlib.mesh import Mesh
from meshlib.model import Instance
from tests.unit.cli.said import Run, Said


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("MESH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MESH_REGISTRY", f"memory://{tmp_path}")
    monkeypatch.setenv("MESH_COLD_START_TIMEOUT", "20")


@pytest.fixture
def shared(tmp_path: Path) -> Store:
    return store(str(tmp_path))


@pytest.fixture
def orders(shared: Store) -> list[Instance]:
    """Two instances of "orders"."""
    made = [
        Instance.parse({"service": "orders", "id": name, "host": f"10.0.0.{number}", "port": 8080, "version": "1.2",
                        "zone": "eu", "labels": {"team": "pay"}, "generation": "g"})
        for number, name in enumerate(("a", "b"), 1)
    ]  # fmt: skip
    for one in made:
        shared.instances["", "orders", one.id] = (one, float("inf"))
    return made


@pytest.fixture
def mesh(capsys: pytest.CaptureFixture[str]) -> Run:
    def typed(*words: Any, app: Mesh | None = None) -> Said:
        capsys.readouterr()
        code = run([str(word) for word in words], mesh=app)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return typed
