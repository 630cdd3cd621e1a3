"""Where documents are in a key-value store.

    policies/-/orders/current                  the document of the service orders, of no namespace
    policies/shop.prod/orders/current          the same in the namespace shop.prod
    policy-history/-/orders/0000000000000007   its version 7, as it was put

Who watches a service watches the prefix ``policies/-/orders/``; what was is elsewhere, and wakes nobody.
"""

from __future__ import annotations

from typing import Final

from meshlib.model import ServiceUrl

ROOT: Final = "policies/"
HISTORY: Final = "policy-history/"


def _place(service: ServiceUrl) -> str:
    return f"{service.namespace or '-'}/{service.service}/"


def prefix_of(service: ServiceUrl) -> str:
    """What to watch for ``service``."""
    return ROOT + _place(service)


def key_of(service: ServiceUrl) -> str:
    """The key of the document of ``service``."""
    return f"{prefix_of(service)}current"


def history_of(service: ServiceUrl) -> str:
    """The prefix of its past documents."""
    return HISTORY + _place(service)


def past_key(service: ServiceUrl, version: int) -> str:
    """The key of one of them: they are ordered by version."""
    return f"{history_of(service)}{version:016d}"


def service_at(key: str) -> ServiceUrl | None:
    """The service whose document is at ``key``, None for other keys."""
    parts = key.removeprefix(ROOT).split("/")
    if not key.startswith(ROOT) or len(parts) != 3 or parts[2] != "current":
        return None
    return ServiceUrl(parts[1], "" if parts[0] == "-" else parts[0])
