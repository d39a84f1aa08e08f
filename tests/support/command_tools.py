"""Declared commands for tests, each a talent of `sample_command.py`, and what can be seen of them from outside."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import psutil

SCRIPT: Final = Path(__file__).with_name("sample_command.py")
NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


def declared(name: str, talent: str, store: Path, **more: Any) -> dict[str, Any]:
    """An entry of a tools file."""
    entry = {
        "name": name,
        "description": f"{name} for tests",
        "input_schema": NO_ARGUMENTS,
        "effect": "pure",
        "command": [sys.executable, "-I", str(SCRIPT), talent, str(store)],
    }
    return {**entry, **more}


def takes(**properties: str) -> dict[str, Any]:
    """The schema of an object with exactly these members, all required, by their types."""
    members = {name: {"type": kind} for name, kind in properties.items()}
    return {"type": "object", "properties": members, "required": sorted(members), "additionalProperties": False}


def written(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"tools": list(entries)}, indent=1))
    return path


def lines(store: Path, name: str) -> list[str]:
    """What the commands told in a file of the store."""
    path = store / name
    return path.read_text().splitlines() if path.exists() else []


def alive(store: Path) -> list[int]:
    """Processes that have the store in their command line: commands, their children, and what watches over them."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(store) in (process.info["cmdline"] or ())
    ]
