"""A process forks while other threads are inside of a circuit breaker: the child is not held up, and has its own probes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: it is what is tested here
from meshlib.policies import forks
if "control" in sys.argv:
    forks._after_fork.__code__ = (lambda: None).__code__
from meshlib import circuit_breaker
from meshlib.policies.base import Site

half, closed = (circuit_breaker(minimum=1, probes=1).breaker_at(Site()) for _ in range(2))
half.open(0.0)
probe = half.enter()[0]
inside, leave = threading.Event(), threading.Event()

def stay():
    with half._lock, half.phase._lock, closed._lock, closed.phase._window._lock:
        inside.set()
        leave.wait()

threading.Thread(target=stay).start()
inside.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(1 if "control" in sys.argv else 30)
    half.enter()[0].good()
    closed.phase.bad(True, False)
    os._exit(0 if (half.state, closed.state) == ("closed", "open") else 1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
leave.set()
probe.good()
print(status, half.state, closed.state)
"""


@pytest.mark.parametrize(("control", "status"), [(False, 0), (True, -signal.SIGALRM)])
def test_a_child_is_not_held_up(control: bool, status: int) -> None:
    command = [sys.executable, "-c", PROGRAM, *(["control"] if control else [])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == f"{int(status)} closed closed\n", ended.stderr
