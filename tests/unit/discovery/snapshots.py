"""What the tests of discovery are made of."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from meshlib.model import Instance, ServiceUrl, Snapshot

ORDERS = ServiceUrl("orders")
REGISTRY = "consul://10.0.0.1:8500"


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = 10_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def instance(name: str, **fields: object) -> Instance:
    return Instance.parse({"service": "orders", "id": name, "host": "10.0.0.5", "port": 8080, **fields})


def snapshot(
    *instances: Instance, suspects: AbstractSet[str] = frozenset(), confirmed: float = 10_000.0, revision: str = ""
) -> Snapshot:
    return Snapshot(ORDERS, instances, frozenset(suspects), confirmed, "registry", revision)
