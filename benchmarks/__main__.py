"""Run one benchmark and print it for people, or with ``--json`` for programs."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import benchmarks
from benchmarks.measure import Row

HELPERS = ("__main__", "measure", "watching")


def main() -> int:
    """Exit 0 also when a bar is missed: a shared machine's timing is no verdict."""
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in HELPERS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    rows: list[Row] = importlib.import_module(f"benchmarks.{chosen.name}").rows()
    if chosen.json:
        print(json.dumps({"name": chosen.name, "rows": [row.plain() for row in rows]}))
        return 0
    width = max(len(row.case) for row in rows)
    for row in rows:
        ratio = "" if row.ratio is None else f"  {row.ratio:6.3f}x"
        bar = "" if row.bar is None else f"  bar {row.bar:g}: {'holds' if row.holds else 'MISSED'}"
        print(f"{row.case:{width}}  {row.median:10.3f} {row.unit}{ratio}{bar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
