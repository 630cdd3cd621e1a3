"""The pytest plugin: every pytest run of an environment that has meshlib loads it, so it imports nothing of it until a test
asks for a mesh."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from meshlib.testing.memory import MemoryMesh


@pytest.fixture
def mesh_settings() -> dict[str, Any]:
    """Settings of the fixture ``mesh``, by name: override it where others than the defaults are wanted."""
    return {}


@pytest.fixture
def mesh(mesh_settings: dict[str, Any]) -> Iterator[MemoryMesh]:
    """A mesh in memory, on a virtual clock: no server, no socket, no waiting."""
    from meshlib.testing.memory import MemoryMesh  # noqa: PLC0415 - see above

    with MemoryMesh(**mesh_settings) as made:
        yield made
