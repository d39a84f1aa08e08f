"""What schemathesis can't know of us: names that exist. Most of its requests get them, so that more is reached.

And one that must be left alone: the tenant that it asks as. Whoever disables their own hears nothing more of any route.
"""

import os
from typing import Any, Final

import schemathesis

MODEL: Final = "agentos-demo"
MAX_MODEL_CHARS: Final = 256
OWN: Final = "tnt_acme"
SUBJECT: Final = "tnt_subject"
"""A tenant to be administered instead."""
EVERY: Final = 4
"""One in so many keeps the name that was drawn."""
_seen = 0


def _drawn() -> bool:
    global _seen  # noqa: PLW0603 - the hooks of one process are functions and nothing else
    _seen += 1
    return _seen % EVERY == 0


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    name = body.get("model") if isinstance(body, dict) else None
    # One that is wrong on purpose stays, else nothing would be wrong with the request.
    if isinstance(name, str) and 1 <= len(name) <= MAX_MODEL_CHARS and not _drawn():
        return {**body, "model": MODEL}
    return body


@schemathesis.hook
def map_path_parameters(_context: Any, path_parameters: Any) -> Any:
    known = {
        "run_id": os.environ["SCHEMAS_RUN_ID"],
        "agent_id": "agt_demo",
        "model": MODEL,
        "version": "1",
        "tenant_id": SUBJECT,
        "budget_id": "tokens_per_day",
    }
    if not isinstance(path_parameters, dict) or _drawn():
        return path_parameters
    return {name: known.get(name, value) for name, value in path_parameters.items()}


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    if (case.path_parameters or {}).get("tenant_id") == OWN:
        case.path_parameters = {**case.path_parameters, "tenant_id": SUBJECT}
