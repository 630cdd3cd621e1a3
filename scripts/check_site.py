"""Holds that the built site (``make docs``) fetches nothing from elsewhere: ``python -m scripts.check_site``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

SITE = Path(__file__).parents[1] / "site"
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|alternate|prev|next))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+|url\(["']?(?:https?:)?//[^"')\s]+"""
    r"""|class=["']?mermaid\b"""  # which has the theme fetch its program
)


def found(site: Path) -> list[str]:
    """What pages and styles would fetch, and where it stands."""
    files = [path for path in site.rglob("*") if path.suffix in {".html", ".css"}]
    return [f"{path.relative_to(site)}: {each[0]}" for path in files for each in FETCHED.finditer(path.read_text())]


def main() -> None:
    """Say what is fetched from elsewhere, and end with 1 if anything is."""
    if not (SITE / "index.html").is_file():
        sys.exit("there is no site; run `make docs`")
    if problems := found(SITE):
        sys.exit("the site fetches from elsewhere:\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
