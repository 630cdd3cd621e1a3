"""The tutorials are executed as a reader would (see :mod:`tests.snippets`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.snippets import TOP, Room, fences

TUTORIALS = sorted((TOP / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorial(page: Path, tmp_path: Path) -> None:
    with Room(tmp_path) as room:
        room.run(fences(page.read_text()), page.name)


def test_there_is_one_per_framework() -> None:
    assert {page.stem for page in TUTORIALS} == {"plain", "flask", "django", "fastapi", "litestar"}
