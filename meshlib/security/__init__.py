"""Secrets, and later signing, keys and access lists."""
