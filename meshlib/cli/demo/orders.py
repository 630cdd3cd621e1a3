"""The service of the demo as its consumers declare it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshlib.client import get, service_client


@dataclass
class Order:
    """One order, and which instance answered."""

    id: int
    item: str
    served_by: str


@service_client("orders", timeout=10.0)
class Orders(Protocol):
    """A client of the service "orders"."""

    @get("/orders/{id}")
    def fetch(self, id: int) -> Order: ...
