"""meshlib: a service mesh inside the process.

    @service_client("orders")
    class Orders(Protocol):
        @get("/orders/{id}")
        def fetch(self, id: int) -> Order: ...

    orders = Mesh.from_env().client(Orders)

The names are loaded on first use (PEP 562), so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meshlib._version import VERSION as __version__

if TYPE_CHECKING:
    from meshlib import keys
    from meshlib.balance import pickers
    from meshlib.client import Body, Header, Path, Query, delete, get, head, options, patch, post, put, service_client
    from meshlib.deadline import time_left, until
    from meshlib.errors import (
        AttemptError,
        AttemptTimeout,
        BadRequest,
        BulkheadFull,
        CallError,
        CasConflict,
        CircuitOpen,
        ClientError,
        ConfigError,
        Conflict,
        ConnectFailed,
        ConnectionLost,
        DeadlineExceeded,
        DecodeError,
        Forbidden,
        GatewayTimeout,
        InvalidAnswer,
        MeshError,
        MissingExtra,
        NoInstances,
        NotFound,
        Overloaded,
        PortInUse,
        RateLimited,
        Refused,
        RegistryDenied,
        RegistryError,
        RegistryUnavailable,
        ServerError,
        ServiceUnavailable,
        StatusError,
        StoreError,
        TooManyRequests,
        Unauthorized,
        UnprocessableContent,
    )
    from meshlib.lifecycle import Registration
    from meshlib.mesh import Mesh
    from meshlib.model import Instance, ServiceUrl, Snapshot, Status
    from meshlib.policies.adaptive import adaptive_concurrency
    from meshlib.policies.budget import RetryBudget
    from meshlib.policies.bulkhead import bulkhead
    from meshlib.policies.cache import cache
    from meshlib.policies.circuit_breaker import breakers_of, circuit_breaker
    from meshlib.policies.fallback import fallback
    from meshlib.policies.hedge import hedge
    from meshlib.policies.inject_fault import inject_fault
    from meshlib.policies.match import Match
    from meshlib.policies.on import on
    from meshlib.policies.rate_limit import rate_limit
    from meshlib.policies.retry import retry
    from meshlib.policies.routes import Mirror, Rule, route
    from meshlib.policies.shed import shed
    from meshlib.policies.timeout import timeout
    from meshlib.priorities import priority
    from meshlib.server.problems import problem
    from meshlib.settings import RegistryUrl, Settings
    from meshlib.subsets import Subset

__all__ = [
    "AttemptError",
    "AttemptTimeout",
    "BadRequest",
    "Body",
    "BulkheadFull",
    "CallError",
    "CasConflict",
    "CircuitOpen",
    "ClientError",
    "ConfigError",
    "Conflict",
    "ConnectFailed",
    "ConnectionLost",
    "DeadlineExceeded",
    "DecodeError",
    "Forbidden",
    "GatewayTimeout",
    "Header",
    "Instance",
    "InvalidAnswer",
    "Match",
    "Mesh",
    "MeshError",
    "Mirror",
    "MissingExtra",
    "NoInstances",
    "NotFound",
    "Overloaded",
    "Path",
    "PortInUse",
    "Query",
    "RateLimited",
    "Refused",
    "Registration",
    "RegistryDenied",
    "RegistryError",
    "RegistryUnavailable",
    "RegistryUrl",
    "RetryBudget",
    "Rule",
    "ServerError",
    "ServiceUnavailable",
    "ServiceUrl",
    "Settings",
    "Snapshot",
    "Status",
    "StatusError",
    "StoreError",
    "Subset",
    "TooManyRequests",
    "Unauthorized",
    "UnprocessableContent",
    "__version__",
    "adaptive_concurrency",
    "breakers_of",
    "bulkhead",
    "cache",
    "circuit_breaker",
    "delete",
    "fallback",
    "get",
    "head",
    "hedge",
    "inject_fault",
    "keys",
    "on",
    "options",
    "patch",
    "pickers",
    "post",
    "priority",
    "problem",
    "put",
    "rate_limit",
    "retry",
    "route",
    "service_client",
    "shed",
    "time_left",
    "timeout",
    "until",
]

_HOMES = {
    "meshlib": "keys",
    "meshlib.balance": "pickers",
    "meshlib.client": "Body Header Path Query delete get head options patch post put service_client",
    "meshlib.deadline": "time_left until",
    "meshlib.errors": (
        "AttemptError AttemptTimeout BadRequest BulkheadFull CallError CasConflict CircuitOpen ClientError ConfigError "
        "Conflict ConnectFailed ConnectionLost DeadlineExceeded DecodeError Forbidden GatewayTimeout InvalidAnswer "
        "MeshError MissingExtra NoInstances NotFound Overloaded PortInUse RateLimited Refused RegistryDenied "
        "RegistryError "
        "RegistryUnavailable ServerError ServiceUnavailable StatusError StoreError TooManyRequests "
        "Unauthorized UnprocessableContent "
    ),
    "meshlib.lifecycle": "Registration",
    "meshlib.mesh": "Mesh",
    "meshlib.model": "Instance ServiceUrl Snapshot Status",
    "meshlib.policies.adaptive": "adaptive_concurrency",
    "meshlib.policies.budget": "RetryBudget",
    "meshlib.policies.bulkhead": "bulkhead",
    "meshlib.policies.cache": "cache",
    "meshlib.policies.circuit_breaker": "breakers_of circuit_breaker",
    "meshlib.policies.fallback": "fallback",
    "meshlib.policies.hedge": "hedge",
    "meshlib.policies.inject_fault": "inject_fault",
    "meshlib.policies.match": "Match",
    "meshlib.policies.on": "on",
    "meshlib.policies.rate_limit": "rate_limit",
    "meshlib.policies.retry": "retry",
    "meshlib.policies.routes": "Mirror Rule route",
    "meshlib.policies.shed": "shed",
    "meshlib.policies.timeout": "timeout",
    "meshlib.priorities": "priority",
    "meshlib.server.problems": "problem",
    "meshlib.settings": "RegistryUrl Settings",
    "meshlib.subsets": "Subset",
}
_MODULES = {"keys", "pickers"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'meshlib' has no attribute {name!r}")
    value = globals()[name] = import_module(f"{home}.{name}") if name in _MODULES else getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
