"""``demo``: see it survive."""

from __future__ import annotations

import sys

from meshlib.cli.demo.scenes import Broken, perform, table
from meshlib.cli.session import Session
from meshlib.cli.setup_facts import Demonstrated


def demo(_session: Session) -> Demonstrated:
    """Run the main job in real processes: three providers register, a consumer calls them, one is killed, the registry is taken
    away, a new consumer starts without it. It takes about half a minute, and leaves nothing behind."""

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    try:
        shown = perform(say)
    except Broken as broken:
        return Demonstrated(held=False, problem=str(broken), seconds=None, first_call_ms=None, calls={}, table="")
    calls = {name: report["served"] for name, report in shown.consumers.items()}
    return Demonstrated(held=True, problem="", seconds=shown.seconds, first_call_ms=shown.first_call_ms, calls=calls,
                        table=table(shown))  # fmt: skip
