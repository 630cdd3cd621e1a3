"""Write the pages of docs/ that are made from the code: ``python -m scripts.generate_docs``."""

from __future__ import annotations

from pathlib import Path

from meshlib.settings import table

DOCS = Path(__file__).parents[1] / "docs"

SETTINGS = """\
# Settings

Everything that can be set, is set by an environment variable, by the same name in lower case and without its prefix in code
(`Mesh.from_env(port=8080)`, `Settings(port=8080)`), or by a framework's own settings. The strongest says it: code, then the
environment, then the framework, then the default. An empty variable is an unset one.

A value that cannot be used is refused when it is read, by a `ConfigError` that names the variable, where its value came from,
what is wrong with it, and an example. A variable that starts as ours do and is none of them is a warning. Secrets are never
shown, and those in files are read again when the files change.

This page is made from the code: `make docs` writes it, `python -m meshlib.settings` prints the table.

{table}

## Notes

- Seconds are decimal numbers: `0.5`. Labels are pairs: `team=pay,track=canary`. IPv6 addresses with a port stand in brackets:
  `[2001:db8::1]:8080`.
- A namespace separates whole environments that share a registry. Without one, services are seen by all who have none either.
- The state directory is, by default, `meshlib` in `$XDG_STATE_HOME` or `~/.local/state`, and where that cannot be written a
  directory of this user's below the temporary one. It holds the disk snapshots and the registry of `local://`.
"""


def pages() -> dict[Path, str]:
    """Every generated page and its content."""
    return {DOCS / "settings.md": SETTINGS.format(table=table())}


def main() -> None:
    """Write them."""
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
