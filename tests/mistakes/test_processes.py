"""Mistakes that end a process: the last line of what it leaves says everything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CALL_AT_IMPORT = """
from meshlib import Mesh

http = Mesh.from_env().http("orders")
tea = http.get("/")
"""
LISTEN = "from meshlib import Mesh; Mesh.from_env().listen()"
FLASK = """
import sys

sys.modules["flask"] = None
from meshlib_contrib.flask import MeshFlask
"""

DJANGO = """
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application

settings.configure(SECRET_KEY="secret", ROOT_URLCONF="urls", **{given!r})
get_wsgi_application()
"""
DJANGOS_OWN = {"INSTALLED_APPS": ["meshlib_contrib.django"], "MIDDLEWARE": ["meshlib_contrib.django.MeshMiddleware"]}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def last_line(code: str, directory: Path, **environ: str) -> str:
    settings = {"MESH_STATE_DIR": str(directory / "state"), "XDG_RUNTIME_DIR": str(directory), **environ}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    (directory / "app.py").write_text(code)
    ended = subprocess.run([sys.executable, "-c", "import app"], cwd=directory, env={**inherited, **settings}, timeout=180,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "During handling" not in ended.stderr
    return ended.stderr.strip().splitlines()[-1]


def test_a_call_while_a_module_is_imported(tmp_path: Path) -> None:
    line = last_line(CALL_AT_IMPORT, tmp_path, MESH_REGISTRY=f"local://{tmp_path}/registry.db", MESH_COLD_START_TIMEOUT="60")
    assert line == "meshlib.errors.NoInstances: orders: no instance is registered"


def test_two_apps_on_one_port(tmp_path: Path, taken: int) -> None:
    line = last_line(LISTEN, tmp_path, MESH_HOST="127.0.0.1", MESH_PORT=str(taken), MESH_REGISTRY="memory://")
    assert line.startswith(f"meshlib.errors.PortInUse: MESH_PORT (from environment): cannot listen on 127.0.0.1:{taken}: ")
    assert line.endswith("; for example another port, or 0 for any free one")


def test_a_registry_that_is_none(tmp_path: Path) -> None:
    line = last_line(LISTEN, tmp_path, MESH_REGISTRY="consol://localhost")
    assert line.startswith(
        "meshlib.errors.ConfigError: MESH_REGISTRY (from environment): unknown scheme 'consol', did you mean"
    )


def test_an_extra_that_is_not_installed(tmp_path: Path) -> None:
    line = last_line(FLASK, tmp_path)
    assert line.endswith("which is not installed; for example pip install 'meshlib-cloud[flask]'")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"MESH": "memory://"},
         "meshlib.E001 (from settings): MESH (from settings): is a str, not a dict of settings; for example MESH = "),
        ({"MESH": {"REGISTRI": "memory://"}},
         "meshlib.E002 (from settings): REGISTRI (from settings.MESH): is not a setting; for example registry"),
        ({"MESH": {"POLICIES": "shed"}}, "POLICIES (from settings.MESH): is a str, not a list of policies"),
        ({"MIDDLEWARE": 2 * DJANGOS_OWN["MIDDLEWARE"]}, "MeshMiddleware stands in MIDDLEWARE more than once"),
        ({"INSTALLED_APPS": []}, "INSTALLED_APPS (from settings): lacks the app of MeshMiddleware"),
    ],
)  # fmt: skip
def test_a_project_of_django(given: dict[str, object], said: str, tmp_path: Path) -> None:
    line = last_line(DJANGO.format(given={**DJANGOS_OWN, **given}), tmp_path)
    assert line.startswith("meshlib.errors.ConfigError: ")
    assert said in line, line
