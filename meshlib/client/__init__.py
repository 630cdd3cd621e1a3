"""Declared clients: a Protocol whose methods are calls by name."""

from meshlib.client.declare import Body, Header, Path, Query, delete, get, head, options, patch, post, put, service_client

__all__ = ["Body", "Header", "Path", "Query", "delete", "get", "head", "options", "patch", "post", "put", "service_client"]
