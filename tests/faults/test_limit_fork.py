"""A process forks while other threads are inside of a limit and a bulkhead: the child is not held up, and has its own places."""

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
from meshlib import bulkhead, rate_limit
from meshlib.policies.base import Site

limit, places = rate_limit("1/h", wait=1.0).bind(Site()), bulkhead(1).bind(Site()).permits
held = places.take()
inside, leave = threading.Event(), threading.Event()

def stay():
    with limit._gate._lock:
        inside.set()
        leave.wait()

threading.Thread(target=stay).start()
inside.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(1 if "control" in sys.argv else 30)
    passed = limit._gate.take() == 0.0 and places.take() is not None
    os._exit(0 if passed else 1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
leave.set()
held()
print(status, places.free, limit._gate.take())
"""


@pytest.mark.parametrize(("control", "status"), [(False, 0), (True, -signal.SIGALRM)])
def test_a_child_is_not_held_up(control: bool, status: int) -> None:
    command = [sys.executable, "-c", PROGRAM, *(["control"] if control else [])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == f"{int(status)} 1 0.0\n", ended.stderr
