"""Shared by all tests: asyncio tests run under anyio's plugin, on asyncio; properties are not timed; and when tests run side by
side, those marked ``alone`` do not."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes says something of the machine only
settings.load_profile("untimed")

os.environ.pop("COLUMNS", None)  # pytest's workers have one: what a command line prints is as wide as it wants to be

SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
"""True in a worker of ``pytest -n``."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that run alone come last: then the fewest have to wait for each other."""
    last = {item.path for item in items if item.get_closest_marker("alone")}
    items.sort(key=lambda item: item.path in last)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run ``item`` beside others, or alone."""
    with _turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_configure() -> None:
    """Who is started in the background by a shell without job control ignores SIGINT, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def beside_others() -> Iterator[None]:
    """For what goes on between the tests of a module, too: none of those that run alone begins meanwhile."""
    with _turn(alone=False):
        yield


@contextmanager
def _turn(*, alone: bool) -> Iterator[None]:
    """By a lock on this file, which all workers have."""
    if not SIDE_BY_SIDE:
        yield
        return
    with Path(__file__).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # not by closing it: a child process may have it open, too
