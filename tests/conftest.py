"""Shared by all tests: asyncio tests run under anyio's plugin, on asyncio; properties are not timed."""

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes says something of the machine only
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
