"""Celery over files: ``celery -A tests.integration.apps.celery_app worker``; run as a program, it sends tasks and prints what
comes of them. ``ROOM`` is where everything lies. What is left of each process when it ends is written there."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from celery import Celery, group, signals

from meshlib import Mesh, get, service_client
from meshlib_contrib.celery import consume

ROOM = Path(os.environ["ROOM"])


@service_client("stock")
class Stock(Protocol):
    @get("/stock/{item}")
    def level(self, item: str) -> int: ...


app = Celery(broker="filesystem://", backend=f"file://{ROOM}/results")
for name in ("queue", "results"):
    (ROOM / name).mkdir(exist_ok=True)
app.conf.update(
    broker_transport_options={"data_folder_in": f"{ROOM}/queue", "data_folder_out": f"{ROOM}/queue", "control_folder": f"{ROOM}/queue"},
    worker_prefetch_multiplier=1, worker_hijack_root_logger=False,
)  # fmt: skip
mesh = Mesh.from_env()
mesh.announce()  # as an app does that is a server elsewhere
if "without" not in os.environ:
    consume(mesh)
stock = mesh.client(Stock)


@app.task(name="level")
def level(item: str) -> list[int]:
    """Call, and say who did: not before the other child of the pool has its turn, too."""
    found = stock.level(item)
    (ROOM / f"called-{os.getpid()}").touch()
    give_up = time.monotonic() + 40
    while len(list(ROOM.glob("called-*"))) < 2 and time.monotonic() < give_up:
        time.sleep(0.05)
    return [found, os.getpid()]


def left(**_: Any) -> None:
    """Which threads there are of the mesh, when a process of the pool ends."""
    names = [each.name for each in threading.enumerate() if each.name.startswith("meshlib")]
    (ROOM / f"left-{os.getpid()}").write_text(json.dumps(names))


signals.worker_process_shutdown.connect(left)

if __name__ == "__main__":
    tasks = group(level.s("tea") for _ in range(int(sys.argv[1])))
    print(json.dumps(tasks.apply_async().get(timeout=120)))
