"""What a live view of 10 000 instances costs: read from an answer of Consul's, merged, joined with endpoints, ready to pick.

Whole processes. One counts what Python allocates, one what the system sees (its heap keeps holes that garbage left), both with
everything that stays: the reader of the watch, the snapshot, the fleet and its picker.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.measure import Row
from benchmarks.pick import ring_rows
from meshlib import Instance, ServiceUrl
from meshlib.backends import consul_wire as wire
from meshlib.backends.base import Listing
from meshlib.balance.fleet import Fleet
from meshlib.balance.layer import Balance
from meshlib.balance.pickers import PICKERS
from meshlib.discovery.merge import merge
from meshlib.discovery.view import View

COUNT = 10_000
BAR_MB = 10.0
ORDERS = ServiceUrl("orders")


def instance(number: int) -> Instance:
    """A typical one: what its release and its place say is said by many."""
    labels = {"team": "shop", "tier": "backend", "runtime": "cpython-3.12", "commit": "5f2e1c9"}
    return Instance(
        "orders", f"orders-{number}-8080", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 8080, version="1.4.2",
        zone=f"eu-west-1{'abc'[number % 3]}", labels=labels, generation=f"{number:016x}",
    )  # fmt: skip


def entry(one: Instance, index: int = 0) -> dict[str, Any]:
    """Its line in ``/v1/health/service``, as Consul 1.8 writes it. ``index`` is that of its last change."""
    moved = {"CreateIndex": 10, "ModifyIndex": index or int(one.id.split("-")[1]) + 100}
    node = {"ID": "5e1f2fb2-7a38-5f06-9c2b-5a0c1d3e7d61", "Node": f"node-{one.host}", "Address": one.host, "Datacenter": "dc1"}
    service = {
        "ID": one.id, "Service": "orders", "Tags": [], "Address": one.host, "Meta": wire.meta(one), "Port": one.port,
        "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": False, "Connect": {}, "Proxy": {}, **moved,
    }  # fmt: skip
    checks = [
        {"Node": node["Node"], "CheckID": name, "Name": "alive", "Status": "passing", "Notes": "", "Output": "",
         "ServiceID": one.id, "ServiceName": "orders", "ServiceTags": [], "Type": "ttl", "Definition": {}, **moved}
        for name in ("serfHealth", f"service:{one.id}")
    ]  # fmt: skip
    meta = {"consul-network-segment": ""}
    return {"Node": {**node, "TaggedAddresses": {"lan": one.host}, "Meta": meta, **moved}, "Service": service, "Checks": checks}


class Held:
    """All that following a service keeps."""

    def __init__(self) -> None:
        self.reader = wire.Reader(ORDERS)
        self.view = View(ORDERS, Fleet(ORDERS), lambda _view: None, timeout=1.0)
        self.balance = Balance(self.view, PICKERS["peak_ewma"])

    def take(self, body: bytes) -> None:
        """An answer arrives."""
        listing = Listing(self.reader.read(body), "7")
        self.view.publish(merge(self.view.known, listing, ORDERS, now=0.0, clock=0.0, hard_age=3600.0))


def rows() -> list[Row]:
    """Each from a process of its own."""
    told = {**_child("allocated"), **_child("resident")}
    return [
        Row(f"{COUNT} instances, allocated by Python", told["held"], "MB", None, BAR_MB),
        Row("the same after each has been called", told["called"], "MB"),
        Row("the same as the resident set grows by it", told["resident"], "MB"),
        Row("an answer of Consul's with all of them", told["body"], "MB"),
        Row("peak while the first is taken in, it included", told["first"], "MB"),
        Row("peak while one with one change is taken in, it included", told["again"], "MB"),
        *ring_rows(),
    ]


def _child(measure: str) -> dict[str, float]:
    """``measure`` in a process that is given two answers: everybody, and the same with one change."""
    lines = [entry(instance(number)) for number in range(COUNT)]
    first = msgspec.json.encode(lines)
    lines[5] = entry(instance(5), COUNT + 200)
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", measure], check=True, stdout=subprocess.PIPE,
                          input=first + b"\n" + msgspec.json.encode(lines), cwd=Path(__file__).parent.parent)  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout)
    return told


def allocated() -> dict[str, float]:
    """Megabytes that Python's allocators count."""
    told = {}
    tracemalloc.start()
    held = Held()
    for peak in ("first", "again"):
        gc.collect()
        before = tracemalloc.get_traced_memory()[0] if peak == "again" else 0
        tracemalloc.reset_peak()
        body = sys.stdin.buffer.readline()
        told["body"] = len(body) / 1e6
        held.take(body)
        told[peak] = (tracemalloc.get_traced_memory()[1] - before) / 1e6
        del body
    gc.collect()
    told["held"] = tracemalloc.get_traced_memory()[0] / 1e6
    for endpoint in held.view.fleet.tiers.prime:
        endpoint.in_flight.add(held)
        endpoint.release(held)
    gc.collect()
    return {**told, "called": tracemalloc.get_traced_memory()[0] / 1e6}


def resident() -> dict[str, float]:
    """Megabytes that the system gives to the process: what garbage left behind in Python's heap counts, too."""
    gc.collect()
    before = _resident()
    held = Held()
    held.take(sys.stdin.buffer.readline())
    gc.collect()
    return {"resident": (_resident() - before) / 1e6}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    warm = Held()
    warm.take(msgspec.json.encode([entry(instance(1))]))
    print(json.dumps({"allocated": allocated, "resident": resident}[sys.argv[1]]()))
