"""A configuration of gunicorn with a leak: the master opens a file for every worker that it starts."""

from __future__ import annotations

import os


def pre_fork(_server: object, _worker: object) -> None:
    """Called in the master."""
    os.open(os.devnull, os.O_RDONLY)
