"""Layers that decide how a call is made: failover, and the policies that users put on clients, methods and functions."""

from meshlib.policies.bulkhead import bulkhead
from meshlib.policies.rate_limit import rate_limit

__all__ = ["bulkhead", "rate_limit"]
