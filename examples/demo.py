"""The main job in real processes on the embedded registry, with its failures; exits 1 if any of it does not hold.

make demo
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
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent


class Demo:
    """The processes of the demo and what they have shown. Everything lives in ``room`` and ends with it."""

    def __init__(self, room: Path) -> None:
        self.registry = room / "registry"
        self.env = {**os.environ, "PYTHONPATH": str(TOP), "MESH_REGISTRY": f"local://{self.registry}/registry.db",
                    "MESH_STATE_DIR": str(room / "state"), "MESH_HOST": "127.0.0.1", "MESH_PORT": "0"}  # fmt: skip
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, module: str, **env: str) -> subprocess.Popen[str]:
        """Start ``python -m module``."""
        process = subprocess.Popen(
            [sys.executable, "-m", module], env={**self.env, **env}, cwd=TOP, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def provider(self) -> tuple[str, subprocess.Popen[str]]:
        """Start a provider and wait until it listens; its name is its port."""
        process = self.start("examples.provider_wsgi", MESH_SERVICE="orders")
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


def until(consumer: subprocess.Popen[str], what: str, holds: Callable[[dict[str, Any]], bool], within: float) -> dict[str, Any]:
    """Ask until ``holds``; end the demo when it does not come true."""
    deadline = time.monotonic() + within
    while not holds(report := ask(consumer)):
        if time.monotonic() > deadline:
            raise SystemExit(f"   FAILED, not within {within:g} s: {what}\n   {report}")
        time.sleep(0.05)
    print(f"   {what}")
    return report


def no_failure(report: dict[str, Any]) -> None:
    """End the demo when a call has failed."""
    if report["failures"]:
        raise SystemExit(f"   FAILED: {len(report['failures'])} calls failed, the first: {report['failures'][0]}")
    print(f"   {sum(report['served'].values())} calls so far, 0 failed")


def show(demo: Demo) -> None:
    """The scenes, one after the other."""
    print("1. Three providers register, a consumer calls them by name")
    providers = dict(demo.provider() for _ in range(3))
    consumer = demo.start("examples.demo_consumer")
    report = until(consumer, "all three instances answer", lambda now: len(now["served"]) == 3, 15)
    no_failure(report)

    victim, process = next(iter(providers.items()))
    print(f"2. The provider on {victim} is killed with SIGKILL")
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ask(consumer)["served"]
    left = [name for name in providers if name != victim]
    until(consumer, "the other two go on answering",
          lambda now: all(now["served"][name] > before.get(name, 0) + 20 for name in left), 15)  # fmt: skip
    no_failure(ask(consumer))

    print("3. The registry is taken away")
    demo.registry.rename(demo.registry.with_name("taken-away"))
    demo.registry.write_text("here was a registry\n")
    lost = until(consumer, "the consumer knows that its list is no longer confirmed", lambda now: not now["live"], 15)
    until(consumer, "and calls go on",
          lambda now: sum(now["served"].values()) > sum(lost["served"].values()) + 100, 15)  # fmt: skip
    no_failure(ask(consumer))

    print("4. A new consumer starts while there is no registry")
    newcomer = demo.start("examples.demo_consumer")
    fresh = until(newcomer, "its calls succeed from the disk snapshot",
                  lambda now: sum(now["served"].values()) > 50 and now["source"] == "disk", 5)  # fmt: skip
    print(f"   its first call was answered {fresh['first_call_ms']:.0f} ms after it began, imports aside")
    no_failure(fresh)
    table(providers, {"consumer": ask(consumer), "new consumer": ask(newcomer)})


def table(providers: dict[str, Any], reports: dict[str, dict[str, Any]]) -> None:
    """Calls per instance, failures, and how old the snapshot is."""
    print("\n" + f"{'calls served by':24}" + "".join(f"{name:>16}" for name in reports))
    for name in providers:
        print(f"{name:24}" + "".join(f"{report['served'].get(name, 0):16}" for report in reports.values()))
    print(f"{'failures':24}" + "".join(f"{len(report['failures']):16}" for report in reports.values()))
    print(f"{'age of the snapshot, s':24}" + "".join(f"{report['age']:16.1f}" for report in reports.values()))
    print(f"{'it came from':24}" + "".join(f"{report['source']:>16}" for report in reports.values()))


def main() -> None:
    """Run the scenes in a room of their own."""
    room = Path(tempfile.mkdtemp(prefix="meshlib-demo-"))
    demo = Demo(room)
    started = time.monotonic()
    try:
        show(demo)
        print(f"\nAll of it held, in {time.monotonic() - started:.0f} s.")
    finally:
        demo.close()
        shutil.rmtree(room, ignore_errors=True)


if __name__ == "__main__":
    main()
