"""What schemathesis can't know of us: names that exist. Most of its requests get them, so that more is reached."""

import os
from typing import Any, Final

import schemathesis

MODEL: Final = "agentos-demo"
EVERY: Final = 4
"""One in so many keeps the name that was drawn."""
_seen = 0


def _drawn() -> bool:
    global _seen  # noqa: PLW0603 - the hooks of one process are functions and nothing else
    _seen += 1
    return _seen % EVERY == 0


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and not _drawn():
        return {**body, "model": MODEL}
    return body


@schemathesis.hook
def map_path_parameters(_context: Any, path_parameters: Any) -> Any:
    known = {"run_id": os.environ["SCHEMAS_RUN_ID"], "agent_id": "agt_demo", "model": MODEL, "version": "1"}
    if not isinstance(path_parameters, dict) or _drawn():
        return path_parameters
    return {name: known.get(name, value) for name, value in path_parameters.items()}
