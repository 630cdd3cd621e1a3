"""The main job in real processes on the embedded registry, with its failures; exits 1 if any of it does not hold.

``mesh demo``, ``make demo``, ``python -m meshlib.cli.demo``
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Say = Callable[[str], None]
PATIENCE = 60.0
"""Seconds until what is to happen has: it takes a few, and on a busy machine more."""


class Broken(Exception):
    """Something that is to hold does not."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demo came to: of each consumer process, its calls by the provider that answered, its failures, and how old its
    list was at the end, and from where. ``first_call_ms`` is what the first call of a process took that started without a
    registry."""

    consumers: dict[str, dict[str, Any]]
    providers: list[str]
    first_call_ms: float
    seconds: float


class Demo:
    """The processes of the demo and what they have shown. Everything lives in ``room`` and ends with it."""

    def __init__(self, room: Path) -> None:
        self.registry = room / "registry"
        self.env = {**os.environ, "MESH_REGISTRY": f"local://{self.registry}/registry.db", "MESH_HOST": "127.0.0.1",
                    "MESH_PORT": "0", "MESH_STATE_DIR": str(room / "state")}  # fmt: skip
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, module: str, **env: str) -> subprocess.Popen[str]:
        """Start ``python -m module``."""
        process = subprocess.Popen(
            [sys.executable, "-m", module], env={**self.env, **env}, cwd=self.registry.parent, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def provider(self) -> tuple[str, subprocess.Popen[str]]:
        """Start a provider and wait until it listens; its name is its port."""
        process = self.start("meshlib.cli.demo.provider", MESH_SERVICE="orders")
        assert process.stdout is not None
        return process.stdout.readline().strip().removeprefix("orders listens on "), process

    def close(self) -> None:
        """End what is still running."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def ask(consumer: subprocess.Popen[str]) -> dict[str, Any]:
    """What the consumer has seen so far."""
    assert consumer.stdin is not None
    assert consumer.stdout is not None
    consumer.stdin.write("report\n")
    consumer.stdin.flush()
    report: dict[str, Any] = json.loads(consumer.stdout.readline())
    return report


class Stage:
    """Tells what is seen, and ends the demo when something does not come true."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def until(self, consumer: subprocess.Popen[str], what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask until ``holds``."""
        deadline = time.monotonic() + PATIENCE
        while not holds(report := ask(consumer)):
            if time.monotonic() > deadline:
                raise Broken(f"not within {PATIENCE:g} s: {what}\n   {report}")
            time.sleep(0.05)
        self.say(f"   {what}")
        return report

    def no_failure(self, report: dict[str, Any]) -> None:
        """No call has failed."""
        if report["failures"]:
            raise Broken(f"{report['failures']} calls failed, the first: {report['failure']}")
        self.say(f"   {sum(report['served'].values())} calls so far, 0 failed")


def show(demo: Demo, say: Say) -> Shown:
    """The scenes, one after the other. Raises :class:`Broken`."""
    stage, started = Stage(say), time.monotonic()
    say("1. Three providers register, a consumer calls them by name")
    providers = dict(demo.provider() for _ in range(3))
    consumer = demo.start("meshlib.cli.demo.consumer")
    stage.no_failure(stage.until(consumer, "all three instances answer", lambda now: len(now["served"]) == 3))
    _kill_one(stage, providers, consumer)
    _take_away(stage, demo, consumer)

    say("4. A new consumer starts while there is no registry")
    newcomer = demo.start("meshlib.cli.demo.consumer")
    fresh = stage.until(newcomer, "its calls succeed from the disk snapshot",
                        lambda now: sum(now["served"].values()) > 50 and now["source"] == "disk")  # fmt: skip
    say(f"   its first call was answered {fresh['first_call_ms']:.0f} ms after it began, imports aside")
    stage.no_failure(fresh)
    consumers = {"consumer": ask(consumer), "new consumer": ask(newcomer)}
    return Shown(consumers, list(providers), fresh["first_call_ms"], time.monotonic() - started)


def _kill_one(stage: Stage, providers: dict[str, subprocess.Popen[str]], consumer: subprocess.Popen[str]) -> None:
    victim, process = next(iter(providers.items()))
    stage.say(f"2. The provider on {victim} is killed with SIGKILL")
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ask(consumer)["served"]
    left = [name for name in providers if name != victim]
    stage.until(consumer, "the other two go on answering",
                lambda now: all(now["served"][name] > before.get(name, 0) + 20 for name in left))  # fmt: skip
    stage.no_failure(ask(consumer))


def _take_away(stage: Stage, demo: Demo, consumer: subprocess.Popen[str]) -> None:
    stage.say("3. The registry is taken away")
    demo.registry.rename(demo.registry.with_name("taken-away"))
    demo.registry.write_text("here was a registry\n")
    lost = stage.until(consumer, "the consumer knows that its list is no longer confirmed", lambda now: not now["live"])
    stage.until(consumer, "and calls go on",
                lambda now: sum(now["served"].values()) > sum(lost["served"].values()) + 100)  # fmt: skip
    stage.no_failure(ask(consumer))


def table(shown: Shown) -> str:
    """Calls per instance, failures, and how old the snapshot is."""
    reports = shown.consumers
    rows: list[tuple[str, list[Any]]] = [("calls served by", list(reports))]
    rows += [(name, [report["served"].get(name, 0) for report in reports.values()]) for name in shown.providers]
    rows.append(("failures", [report["failures"] for report in reports.values()]))
    rows.append(("age of the snapshot, s", [f"{report['age']:.1f}" for report in reports.values()]))
    rows.append(("it came from", [report["source"] for report in reports.values()]))
    return "\n".join(f"{name:24}" + "".join(f"{cell!s:>16}" for cell in cells) for name, cells in rows)


def perform(say: Say) -> Shown:
    """Run the scenes in a room of their own. Raises :class:`Broken`."""
    room = Path(tempfile.mkdtemp(prefix="meshlib-demo-"))
    demo = Demo(room)
    try:
        return show(demo, say)
    finally:
        demo.close()
        shutil.rmtree(room, ignore_errors=True)


def main() -> None:
    """Print it, and exit with 1 if any of it does not hold."""

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        shown = perform(say)
    except Broken as broken:
        raise SystemExit(f"   FAILED: {broken}") from None
    say(f"\n{table(shown)}\n\nAll of it held, in {shown.seconds:.0f} s.")
