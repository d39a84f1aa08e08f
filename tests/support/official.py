"""The official clients, `official.openai` and `official.anthropic`: imported by the first test that asks one.

They take seconds to import, and each process that runs a share of the tests reads every file.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anthropic
    import openai
else:
    from importlib import import_module
    from types import ModuleType

    def __getattr__(name: str) -> ModuleType:
        if name not in {"anthropic", "openai"}:
            raise AttributeError(name)
        return import_module(name)


__all__ = ["anthropic", "openai"]
