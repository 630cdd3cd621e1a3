"""Layers that decide how a call is made, and the rules that make them."""

from meshlib.policies.budget import RetryBudget
from meshlib.policies.hedge import hedge
from meshlib.policies.retry import retry
from meshlib.policies.timeout import timeout

__all__ = ["RetryBudget", "hedge", "retry", "timeout"]
