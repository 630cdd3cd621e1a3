"""The README as it stands: its frameworks in an environment that has what the README says to install and nothing else, against a
real Consul and a real etcd; everything else here."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from meshlib import Mesh, Settings
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer
from tests.snippets import PRINTS, TOP, Fence, Room, fences

TEXT = (TOP / "README.md").read_text()
PAGE = fences(TEXT)
FILES = [fence for fence in PAGE if fence.title.endswith(".py")]
PROVIDERS = [place for place, fence in enumerate(PAGE) if fence.lang == "sh" and "provider" in fence.body]
SOURCES = ("meshlib", "meshlib_contrib", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def name_of(place: int) -> str:
    found = re.search(r"(\w*)_?provider", PAGE[place].body)
    assert found
    return found[1].strip("_") or "wsgi"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with a wheel of this checkout, its extras, and what else the README says to install."""
    room = tmp_path_factory.mktemp("clean")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    (room / "source").mkdir()
    for name in SOURCES:  # built in the checkout, it would leave things there
        copy = shutil.copytree if (TOP / name).is_dir() else shutil.copy
        copy(TOP / name, room / "source" / name)
    built = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(room), str(room / "source")]
    subprocess.run([*pip, *built], check=True)
    (wheel,) = room.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(room / "env")], check=True)
    wanted = [re.sub(r"^\.(?=\[|$)", str(wheel), each) for each in installed()]
    subprocess.run([*pip, "--python", str(room / "env/bin/python"), "install", "--quiet", "--no-compile", *wanted], check=True)
    return room / "env" / "bin"


def installed() -> list[str]:
    """What the README says to install, in commands and in sentences."""
    said = re.findall(r"pip install ('?\.(?:\[[\w,]+\])?'?(?: [a-z]+\b)*)(?=[`\n])", TEXT)
    return list(dict.fromkeys(word for each in said for word in shlex.split(each)))


def test_what_is_installed() -> None:
    assert {".", ".[consul]", ".[flask]", ".[fastapi]", "uvicorn"} <= set(installed())


@pytest.fixture(scope="module")
def registries() -> Iterator[dict[str, str]]:
    with closing(ConsulServer()) as consul, closing(EtcdServer()) as etcd:
        for server in (consul, etcd):
            server.launch()
        for server in (consul, etcd):
            server.await_ready()
        yield {"consul": consul.url, "etcd": f"etcd://127.0.0.1:{etcd.port}"}


@pytest.mark.parametrize("place", PROVIDERS, ids=name_of)
def test_framework(place: int, clean: Path, registries: dict[str, str], tmp_path: Path) -> None:
    """Provider and consumer, started as the README says; in both registries at a time, and at first in none."""
    cases = {**registries, **({"": ""} if place == PROVIDERS[0] else {})}
    namespace = f"readme.{name_of(place)}"

    def run(case: str) -> None:
        room = tmp_path / (case or "local")
        room.mkdir()
        env = {"PATH": f"{clean}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}
        if case:
            env |= {"MESH_REGISTRY": cases[case], "MESH_NAMESPACE": namespace}
        with Room(room, env=env) as made:
            made.run([*FILES, *PAGE[place : place + 2]], "README.md")
            assert not case or listed(cases[case], namespace) == ["orders"]
        assert PAGE[place + 1].title == PRINTS

    at_once(run, list(cases))


def at_once(run: Callable[[str], None], cases: list[str]) -> None:
    with ThreadPoolExecutor(len(cases)) as executor:
        for done in [executor.submit(run, case) for case in cases]:
            done.result()


def listed(registry: str, namespace: str) -> list[str]:
    """The names that it has, while the provider runs."""
    with Mesh(Settings(registry=registry, namespace=namespace)) as mesh:
        return mesh.services()


def test_the_clean_environment_has_nothing_else(clean: Path) -> None:
    code = "import meshlib, importlib.util as u; print(meshlib.__file__, u.find_spec('pytest'), u.find_spec('tests'))"
    said = subprocess.run([clean / "python", "-I", "-c", code], cwd=clean, capture_output=True, text=True, check=True).stdout
    assert said.split()[1:] == ["None", "None"]
    assert str(clean.parent) in said


def test_everything_else(tmp_path: Path) -> None:
    elsewhere = {*PROVIDERS, *(place + 1 for place in PROVIDERS)}
    rest: list[Fence] = [fence for place, fence in enumerate(PAGE) if place not in elsewhere and fence not in FILES]
    assert sum(fence.lang == "python" for fence in rest) >= 2
    with Room(tmp_path) as room:
        room.run(rest, "README.md")


def test_every_file_is_run() -> None:
    ran = "\n".join(PAGE[place].body for place in PROVIDERS)
    assert [each.title for each in FILES if each.title.removesuffix(".py") not in ran] == []
