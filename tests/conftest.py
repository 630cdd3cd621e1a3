"""Shared by all tests: asyncio tests run under anyio's plugin, on asyncio."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
