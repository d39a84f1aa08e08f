"""A plugin of pytest's, for runs in a copy of the tree: runs the tests that are asked for and writes down how each ended.

A failure proves something only where the test itself found it. An error while the test was set up, or a name, member or
module that isn't there, says that the removal broke the code: such a test is `broken`, not `red`.
"""

import importlib
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

import ports

ASKED: Final = "AGENTOS_CONTROLS_TESTS"
REPORT: Final = "AGENTOS_CONTROLS_REPORT"
CHANGED: Final = "AGENTOS_CONTROLS_CHANGED"
GREEN: Final = "green"
RED: Final = "red"
BROKEN: Final = "broken"
_BREAKS: Final = (ImportError, SyntaxError, NameError, AttributeError)
_ROOT: Final = Path(__file__).resolve().parents[2]


class Watch:
    def __init__(self, asked: frozenset[str]) -> None:
        self._asked = asked
        self._said: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        dropped = [item for item in items if name_of(item) not in self._asked]
        items[:] = [item for item in items if name_of(item) in self._asked]
        config.hook.pytest_deselected(items=dropped)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self._said.get(name_of(item), ("", ""))[0] == RED:
            # One red case is what is wanted.
            pytest.skip("has failed already")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed and call.excinfo is not None:
            self._say(
                item, RED if call.when == "call" and proves(call.excinfo.value) else BROKEN, call.excinfo.typename
            )
        elif report.passed and call.when == "call":
            self._say(item, GREEN, "")
        return report

    def _say(self, item: pytest.Item, what: str, why: str) -> None:
        """One red of its cases is what is wanted; a broken one says more than a green one."""
        order = (GREEN, BROKEN, RED)
        before, _ = self._said.get(name_of(item), (GREEN, ""))
        if order.index(what) >= order.index(before):
            self._said[name_of(item)] = (what, why)

    def pytest_sessionfinish(self) -> None:
        # Whose code was tested: a path that leads elsewhere would prove nothing.
        ours = Path(ports.__file__).is_relative_to(_ROOT)
        Path(os.environ[REPORT]).write_text(json.dumps(self._said if ours else {}), encoding="utf-8")


def proves(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(proves(one) for one in error.exceptions)
    return not isinstance(error, _BREAKS)


def name_of(item: pytest.Item) -> str:
    """Where it is written, which for a contract is the kit, and its name without its case."""
    name: str = getattr(item, "originalname", item.name)
    owners = item.cls.__mro__ if isinstance(item, pytest.Function) and item.cls else ()
    owner = next((one for one in owners if name in vars(one)), None)
    if owner is not None and owner.__module__.startswith("conformance."):
        return f"{owner.__module__.replace('.', '/')}.py::{name}"
    return f"{item.path.relative_to(_ROOT).as_posix()}::{name}"


def pytest_configure(config: pytest.Config) -> None:
    changed = os.environ[CHANGED]
    if changed.endswith(".py"):
        # Services that a test starts would not come up without it, and the test would blame something else.
        importlib.import_module(changed.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    config.pluginmanager.register(Watch(frozenset(os.environ[ASKED].split())), "controls")
