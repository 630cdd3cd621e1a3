"""Choosing an instance: a fleet of endpoints, pickers over it, and the layer that uses both. Knows snapshots, never a
registry."""
