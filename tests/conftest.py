"""What every test has: the asyncio backend for anyio's plugin; and the order of files between processes."""

import pytest

from tests.support.order import ALONE, file_of, misplaced, place


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wrong := misplaced(items):
        raise pytest.UsageError(f"marked `alone`, which `agentos test` runs in {ALONE} only: {', '.join(wrong)}")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place(file_of(item)))
