"""Layers that decide how a call is made: failover, and the policies that users put on clients, methods and functions."""

from meshlib.policies.adaptive import adaptive_concurrency
from meshlib.policies.budget import RetryBudget
from meshlib.policies.bulkhead import bulkhead
from meshlib.policies.cache import cache
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

__all__ = [
    "Match", "Mirror", "RetryBudget", "Rule", "adaptive_concurrency", "bulkhead", "cache", "fallback", "hedge", "inject_fault",
    "on", "rate_limit", "retry", "route", "shed", "timeout",
]  # fmt: skip
