"""Layers that decide how a call is made: failover, and the policies that users put on clients, methods and functions."""

from meshlib.policies.budget import RetryBudget
from meshlib.policies.bulkhead import bulkhead
from meshlib.policies.hedge import hedge
from meshlib.policies.rate_limit import rate_limit
from meshlib.policies.retry import retry
from meshlib.policies.timeout import timeout

__all__ = ["RetryBudget", "bulkhead", "hedge", "rate_limit", "retry", "timeout"]
