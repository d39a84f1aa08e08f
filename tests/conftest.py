"""What every test has: the asyncio backend for anyio's plugin."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
