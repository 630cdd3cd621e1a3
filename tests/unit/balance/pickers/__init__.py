"""Pickers by key."""
