"""A process that keeps to a limit of its host: ``python -m tests.faults.limiter MODE SECONDS``; its state directory is
MESH_STATE_DIR, and RATE the limit.

``hammer``: asks without pause, and writes the time of each admission (as the limit itself reads it) to the file ADMITTED as
8 bytes. ``hold``: takes the lock, says so, and sleeps inside. ``hold-forked``: the same with a child process that was forked
inside. The variable BREAK undoes a defence.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshlib.policies import shared_window
from meshlib.policies.base import Site
from meshlib.policies.gate import Stuck
from meshlib.policies.host_gates import HostGates
from meshlib.policies.rates import Rate

RATE = Rate.parse(os.environ.get("RATE", "300/2s"))


class Clock:
    """Remembers what it said last."""

    now = 0.0

    def __call__(self) -> float:
        self.now = time.monotonic()
        return self.now


def hammer(gates: HostGates, clock: Clock, seconds: float) -> None:
    log = os.open(os.environ["ADMITTED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        with suppress(Stuck):  # on a machine that is busy with other things, too
            if not gates.take(None)[1]:
                os.write(log, struct.pack("d", clock.now))


def hold(gates: HostGates, seconds: float, *, fork: bool) -> None:
    with gates.find(None)._lock:
        if fork and os.fork() == 0:
            select.select([sys.stdin], [], [], seconds)  # or until nobody is at its other end
            os._exit(0)
        print("held", flush=True)
        time.sleep(seconds)


def break_it(what: str) -> None:
    """The negative controls: ``lock``: none; ``inherited``: one that a child process inherits; ``pause``: others come in
    between looking and taking (as they do now and then anyway)."""
    shared: Any = shared_window
    if "lock" in what:
        shared._take = lambda handle: True
    if "inherited" in what:
        shared._take = _flock
    if "pause" in what:
        add = shared.SharedRing.add

        def slowly(self: Any, now: float) -> None:
            time.sleep(0.001)
            add(self, now)

        shared.SharedRing.add = slowly


def _flock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    mode, seconds, clock = sys.argv[1], float(sys.argv[2]), Clock()
    break_it(os.environ.get("BREAK", ""))
    directory = Path(os.environ["MESH_STATE_DIR"])
    gates = HostGates((RATE,), 1, Site(clock=clock, state_dir=lambda: directory))
    opened = False
    while not opened:
        with suppress(Stuck), gates.find(None)._lock:
            opened = True
    print("ready", flush=True)
    if mode == "hammer":
        sys.stdin.readline()  # all at once
        hammer(gates, clock, seconds)
    else:
        hold(gates, seconds, fork=mode == "hold-forked")


if __name__ == "__main__":
    main()
