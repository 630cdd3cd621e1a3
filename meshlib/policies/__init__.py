"""Layers that decide how a call is made: failover now; the other policies stand beside it."""
