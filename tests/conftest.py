"""Shared by all tests: asyncio tests run under anyio's plugin, on asyncio."""

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
