"""Imports point one way, and the public names are these."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshlib

ROOT = Path(meshlib.__file__).parent

# What each room may import, besides itself. Whoever enters a room that is not here, adds it.
FACTS = {"errors", "model"}
SETTINGS = FACTS | {"fields", "security", "settings", "text", "values"}
FLOW = FACTS | {"flow"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "model": {"errors"},
    "flow": FACTS | {"background"},
    "background": {"threads"},
    "deadline": FLOW,
    "priorities": FLOW,
    "outcome": {"errors"},
    "answers": FLOW,
    "patterns": {"errors"},
    "versions": {"errors"},
    "fields": {"errors", "text"},
    "subsets": FACTS | {"fields", "patterns", "versions"},
    "text": set(),
    "events": {"threads"},
    "metrics": {"files", "threads"},
    "requests": set(),
    "keys": FLOW | {"text"},
    "policies": SETTINGS
    | {"answers", "deadline", "events", "fields", "files", "flow", "keys", "metrics", "outcome", "patterns", "subsets"}
    | {"priorities", "threads"},
    "balance": FLOW | {"deadline", "keys", "outcome", "priorities", "subsets", "text", "threads"},
    "security": FLOW,
    "values": FACTS | {"security", "text"},
    "settings": FACTS | {"fields", "security", "text", "values"},
    "files": {"threads"},
    "threads": set(),
    "worker": {"threads"},
    "backends": SETTINGS | {"backends", "files", "threads"},
    # A live view is a fleet that calls may wait for: where control plane and data plane meet.
    "discovery": SETTINGS | {"backends", "files", "threads"} | {"balance", "flow"},
    # It follows its documents as discovery follows instances.
    "governance": SETTINGS | {"backends", "discovery", "events", "fields", "files", "flow", "patterns", "policies", "threads"},
    "addressing": SETTINGS | {"flow", "balance"},
    "transport": SETTINGS | {"addressing", "flow", "balance"},
    "client": SETTINGS
    | {"answers", "deadline", "events", "flow", "balance", "outcome", "policies", "subsets", "text", "transport"},
    "mounts": SETTINGS | {"answers", "deadline", "flow", "balance", "client", "policies", "requests", "transport"},
    "server": FLOW | {"deadline", "security", "policies", "priorities"},
    # A mesh for tests is a mesh: only what tests are made of has nobody above it.
    "testing": SETTINGS
    | {
        "backends",
        "background",
        "balance",
        "client",
        "deadline",
        "discovery",
        "flow",
        "mesh",
        "mounts",
        "policies",
        "server",
        "threads",
        "transport",
        "worker",
    },
    "_version": set(),
    "management": SETTINGS | {"_version", "server", "threads", "worker"},
    "announcement": SETTINGS | {"discovery", "worker"},
    "lifecycle": SETTINGS | {"discovery", "management", "server", "worker"},
    "doctor": SETTINGS | {"backends", "discovery", "files", "governance"},
    "cli": SETTINGS | {"backends", "balance", "client", "discovery", "doctor", "governance", "mesh", "transport", "_version"},
    "__main__": {"cli"},
    "mesh": SETTINGS
    | {
        "announcement",
        "backends",
        "balance",
        "client",
        "discovery",
        "events",
        "flow",
        "governance",
        "metrics",
        "policies",
        "lifecycle",
        "management",
        "mounts",
        "server",
        "threads",
        "transport",
        "worker",
    },
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT)
        room = inside.parts[0].removesuffix(".py")
        if room not in ("__init__", "_version"):
            yield room, path


def imports(path: Path) -> Iterator[str]:
    """The full names that a module imports when it runs: what is under TYPE_CHECKING is for readers only."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for part in block.body
        for node in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            if node.module == "meshlib":
                yield from (f"meshlib.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize(
    ("room", "path"), list(modules()), ids=lambda value: str(value.relative_to(ROOT)) if isinstance(value, Path) else ""
)
def test_imports_point_one_way(room: str, path: Path) -> None:
    allowed = ALLOWED[room] | {room}
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top != "meshlib_contrib", f"{path} imports {name}"
        if top == "meshlib":
            assert rest.partition(".")[0] in allowed, f"{path} imports {name}"


def test_no_room_is_reached_from_what_it_imports() -> None:
    """The table itself has no circles."""

    def below(room: str) -> set[str]:
        return set().union(*({each} | below(each) for each in ALLOWED[room] - {room}))

    for room in ALLOWED:
        assert room not in below(room)


def test_the_negative_control(tmp_path: Path) -> None:
    """What the test above would catch."""
    path = tmp_path / "bad.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\ndef f():\n    from meshlib.mesh import Mesh\n"
    )
    assert list(imports(path)) == ["typing", "meshlib.mesh"]


PUBLIC = """
AttemptError AttemptTimeout BadRequest Body BulkheadFull CallError CasConflict CircuitOpen ClientError ConfigError Conflict
ConnectFailed ConnectionLost DeadlineExceeded DecodeError Forbidden GatewayTimeout Header Instance InvalidAnswer Match Mesh
MeshError Mirror MissingExtra NoInstances NotFound Overloaded Path PortInUse Query RateLimited Refused Registration
RegistryDenied RegistryError RegistryUnavailable RegistryUrl RetryBudget Rule ServerError ServiceUnavailable ServiceUrl
Settings Snapshot Status StatusError StoreError Subset TooManyRequests Unauthorized UnprocessableContent __version__
adaptive_concurrency breakers_of bulkhead cache circuit_breaker delete fallback get head hedge inject_fault keys on options
patch pickers post priority problem put rate_limit retry route service_client shed time_left timeout until
"""


def test_the_public_names() -> None:
    assert meshlib.__all__ == PUBLIC.split()
    assert set(PUBLIC.split()) <= set(dir(meshlib))


@pytest.mark.parametrize("name", PUBLIC.split())
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(meshlib, name) is not None


def test_what_is_not_public() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        meshlib.nothing  # noqa: B018


def test_type_checkers_and_programs_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert shown == meshlib._HOME_OF


def test_all_errors_are_public() -> None:
    errors = importlib.import_module("meshlib.errors")
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes <= set(meshlib.__all__)


def loaded(code: str) -> set[str]:
    code = f"import sys, httpx2\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert loaded("import meshlib") <= {"meshlib", "meshlib._version"}


def test_using_it_loads_no_backend_and_no_extra() -> None:
    names = loaded("from meshlib import Mesh, service_client, get")
    heavy = {
        "consul",
        "sqlite3",
        "httpx",
        "pydantic",
        "semantic_version",
        "meshlib.backends.local",
        "meshlib.backends.consul",
        "meshlib.announcement",
        "meshlib.management",
        "meshlib.testing",
    }
    assert not names & heavy
    assert {"meshlib.mesh", "meshlib.client.stub"} <= names


def test_importing_starts_nothing() -> None:
    code = "import threading, meshlib.mesh, meshlib.backends.memory; assert threading.active_count() == 1"
    assert loaded(code)
