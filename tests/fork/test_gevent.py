"""Under gevent the control plane runs beside the app, in threads of the operating system, and waiting for it is cooperative."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import asyncio, os, sys, time
import gevent
from typing import Protocol
from meshlib import Mesh, get, lifecycle, service_client, worker
from tests.fork.stage import _Stock
from http.server import ThreadingHTTPServer

lifecycle.PROPAGATION = 0.01
if "green" in sys.argv:  # the control: threads and selectors as gevent has them
    import selectors, threading
    worker._new_loop = asyncio.new_event_loop
    worker.thread = lambda work, name: threading.Thread(target=work, name=name, daemon=True)

@service_client("stock")
class Stock(Protocol):
    @get("/stock/{item}")
    def level(self, item: str) -> int: ...
    @get("/stock/{item}")
    async def alevel(self, item: str) -> int: ...

server = ThreadingHTTPServer(("127.0.0.1", 0), _Stock)
gevent.spawn(server.serve_forever)
ticks = []
gevent.spawn(lambda: [ticks.append(gevent.sleep(0.01)) for _ in iter(int, 1)])
opened = []
for _ in range(12):
    mesh = Mesh.from_env()
    registration = mesh.register(server.server_address[1])
    registration.wait()
    stock = mesh.client(Stock)
    assert stock.level("tea") == 7
    assert asyncio.run(stock.alevel("tea")) == 7
    mesh.close()
    opened.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))

def left():
    now = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    return [late - early for early, late in zip(opened[1], now)]

with Mesh.from_env(registry="etcd://127.0.0.1:1") as mesh:
    before, registration = len(ticks), mesh.register(8080)
    for _ in range(5):  # the machine itself may stand still for so long
        try:
            registration.wait(2.0)
        except TimeoutError:
            if len(ticks) > before + 1:
                break
        else:
            raise AssertionError("nobody listens there")
    else:
        raise AssertionError("other greenlets go on while one waits")
# A thread, or the server's end of a connection, may still be ending; a leak of one each time would make it ten.
for _ in range(300):
    if max(left()) <= 4:
        break
    gevent.sleep(0.1)
else:
    raise AssertionError(f"{left()} more: {opened}")
"""

SETTLED = """
from gevent import monkey
monkey.patch_all()
import sys
from concurrent.futures import Future
import gevent
from meshlib.threads import GreenThread, original, promise

made = Future() if "control" in sys.argv else promise()
sleep, inside = original("time", "sleep"), []

def settle():
    for _ in range(2):
        with made._condition:
            inside.append(True)
            sleep(0.5)
    made.set_result(7)

thread = GreenThread(settle)
thread.start()
while not inside:
    gevent.sleep(0.01)
with gevent.Timeout(4 if "control" in sys.argv else 60, False):
    print(made.result())
"""


LISTED = """
from gevent import monkey
monkey.patch_all()
import sys, threading
import gevent
from meshlib.balance.fleet import Fleet
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.threads import GreenThread, original

fleet = Fleet(ServiceUrl("stock"))
fleet.update(Snapshot(ServiceUrl("stock"), (Instance("stock", "a", "127.0.0.1", 80), Instance("stock", "b", "127.0.0.1", 81))))
if "control" in sys.argv:
    fleet._lock = threading.Lock()
inside, sort, sleep = [], fleet._sort, original("time", "sleep")

def slow():
    inside.append(True)
    sleep(0.5)  # of ten thousand, on a machine that is busy with other things
    sort()

def listen():
    for _ in range(2):
        fleet.update(fleet.snapshot)

fleet._sort = slow
GreenThread(listen).start()
while not inside:
    gevent.sleep(0.01)
with gevent.Timeout(4 if "control" in sys.argv else 60, False):
    print(fleet.eject(fleet.find("a")))
"""

LOCKS = """
from gevent import monkey
monkey.patch_all()
import gc, os
from datetime import timedelta
from typing import Protocol
from meshlib import *
from pybreaker import CircuitMemoryStorage

@cache(10.0)
@fallback(last_good=60.0)
@retry(attempts=2)
@hedge(delay=1.0)
@rate_limit("100/s", key=keys.path())
@bulkhead(5)
@adaptive_concurrency()
@circuit_breaker(storage=CircuitMemoryStorage("closed"))
@service_client("stock")
class Stock(Protocol):
    @get("/stock/{item}")
    def level(self, item: str) -> int: ...

with Mesh.from_env() as mesh:
    stock = mesh.client(Stock)
    try:
        stock.level("tea")
    except NoInstances:
        pass
    ours = [each for each in gc.get_objects() if str(type(each).__module__).startswith("meshlib.")]
    for each in ours:
        held = [getattr(each, name, None) for name in (*getattr(each, "__dict__", ()), *getattr(type(each), "__slots__", ()))]
        for lock in held:
            if type(lock).__qualname__ in ("LockType", "RLock", "_RLock") and type(lock).__module__ != "_thread":
                print(type(each).__qualname__)
    print(len(ours) > 100)
"""


COUNTS = """
from gevent import monkey
monkey.patch_all()
import faulthandler, subprocess, sys, time
import gevent
from pathlib import Path
from meshlib import files
from meshlib.metrics.shelf import _MUTEX, Shelf

faulthandler.dump_traceback_later(8 if "control" in sys.argv else 60, exit=True)
if "control" in sys.argv:  # the pauses as gevent has them
    files.original = lambda *_: time.sleep
shelf = Shelf(Path(sys.argv[1]) / "metrics")
shelf.keep(())
hold = '''
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))
print("held", flush=True)
time.sleep(0.5)
'''
holder = subprocess.Popen([sys.executable, "-c", hold, shelf._directory / "slots", str(_MUTEX)], stdout=subprocess.PIPE)
holder.stdout.readline()
gevent.joinall([gevent.spawn(shelf.keep, ()) for _ in range(2)], raise_error=True)
print(holder.wait())
"""


def run(tmp_path: Path, *arguments: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MESH_REGISTRY": f"local://{tmp_path}/registry.db", "MESH_STATE_DIR": str(tmp_path / "state"),
           "MESH_SERVICE": "stock"}  # fmt: skip
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=env, cwd=TOP, capture_output=True, text=True, check=False, timeout=300)


def test_calls_of_both_kinds_and_nothing_left_behind(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_control_a_loop_in_a_greenlet_keeps_the_app_from_running_one(tmp_path: Path) -> None:
    done = run(tmp_path, "green")
    assert "asyncio.run() cannot be called from a running event loop" in done.stderr


def test_a_thread_that_takes_the_lock_of_a_future_twice_leaves_no_greenlet_behind(tmp_path: Path) -> None:
    assert run(tmp_path, program=SETTLED).stdout == "7\n"


def forgets(tmp_path: Path, program: str) -> bool:
    """True when ``program`` with gevent's lock has. Not where the greenlet comes so late that nobody is inside any more: then
    another time."""

    def forgotten() -> bool:
        done = run(tmp_path, "control", program=program)
        assert done.returncode == 0, done.stderr
        return not done.stdout

    return any(forgotten() for _ in range(5))


def test_the_control_gevents_own_lock_forgets_it(tmp_path: Path) -> None:
    assert forgets(tmp_path, SETTLED)


def test_a_thread_that_takes_over_two_lists_leaves_no_greenlet_behind(tmp_path: Path) -> None:
    assert run(tmp_path, program=LISTED).stdout == "True\n"


def test_the_control_gevents_lock_of_the_fleet_forgets_it(tmp_path: Path) -> None:
    assert forgets(tmp_path, LISTED)


def test_no_lock_that_both_take_is_one_of_gevents(tmp_path: Path) -> None:
    done = run(tmp_path, program=LOCKS)
    *greens, known = done.stdout.splitlines()
    assert known == "True", done.stderr
    # Executors use none of what they have from their parent; a race is run by greenlets alone.
    assert {*greens} <= {"DaemonExecutor", "Course"}


def test_two_greenlets_that_wait_for_the_counts_of_another_process_do_not_stop_each_other(tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path), program=COUNTS)
    assert done.stdout == "0\n", done.stderr


def test_the_control_greenlets_that_let_others_go_on_while_they_have_a_lock_stop_each_other(tmp_path: Path) -> None:
    """Unless the other process had let go before either came: then another time."""

    def stopped() -> bool:
        done = run(tmp_path, str(tmp_path), "control", program=COUNTS)
        assert "Timeout" in done.stderr or done.stdout == "0\n", done.stderr
        return not done.stdout

    assert any(stopped() for _ in range(5))
