"""A consumer process of the demo: calls "orders" without a pause longer than 10 ms and tells, when asked on standard input
with ``report``, how it went, as one line of JSON."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter

from meshlib.cli.demo.orders import Orders
from meshlib.errors import CallError
from meshlib.mesh import Mesh


def main() -> None:
    """Call until standard input ends."""
    logging.basicConfig(level=logging.ERROR)
    started = time.perf_counter()
    mesh = Mesh.from_env()
    orders = mesh.client(Orders)
    served: Counter[str] = Counter()
    failures: list[str] = []
    first: list[float] = []
    stop = threading.Event()

    def call() -> None:
        number = 0
        while not stop.wait(0.01):
            number += 1
            try:
                served[orders.fetch(number).served_by] += 1
                if not first:
                    first.append((time.perf_counter() - started) * 1000)
            except CallError as error:
                failures.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    for _ in sys.stdin:
        view = mesh.view("orders")
        snapshot = view.snapshot
        report = {
            "served": dict(served),
            "failures": len(failures),
            "failure": failures[0] if failures else None,
            "first_call_ms": first[0] if first else None,
            "live": view.live,
            "source": snapshot.source if snapshot else None,
            "age": snapshot.age(time.time()) if snapshot else None,
        }
        print(json.dumps(report), flush=True)
    stop.set()
    caller.join()
    mesh.close()


if __name__ == "__main__":
    main()
