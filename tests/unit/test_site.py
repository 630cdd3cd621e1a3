"""The built docs fetch nothing from elsewhere: what is looked for is found where it is."""

from __future__ import annotations

from pathlib import Path

import griffe
import pytest

from scripts.check_site import found
from scripts.docs_roles import markdown


@pytest.mark.parametrize(
    ("text", "fetches"),
    [
        ('<script src="https://unpkg.com/mermaid.js"></script>', True),
        ("<img src=//cdn.example/a.png>", True),
        ('<link href="https://fonts.googleapis.com/css" rel="stylesheet">', True),
        ('<style>@import "https://a.example/b.css";</style>', True),
        ('<pre class="mermaid"><code>graph</code></pre>', True),
        ('<a href="https://example.com">a link</a>', False),
        ('<link rel="canonical" href="https://example.com">', False),
        ('<script src="assets/bundle.js"></script>', False),
    ],
)
def test_what_is_fetched(tmp_path: Path, text: str, fetches: bool) -> None:
    (tmp_path / "page.html").write_text(text)
    assert bool(found(tmp_path)) is fetches


def test_docstrings_as_markdown() -> None:
    said = markdown("Raises :class:`~meshlib.errors.ConfigError`, :func:`play`. So::\n\n    play()\n")
    assert said == "Raises `meshlib.errors.ConfigError`, `play`. So:\n\n    play()\n"


def test_the_extension_is_called() -> None:
    with griffe.temporary_visited_module('"""See :mod:`meshlib`."""\n') as module:
        assert module.docstring is not None
        from scripts.docs_roles import Roles

        Roles().on_object(obj=module)
        assert module.docstring.value == "See `meshlib`."
