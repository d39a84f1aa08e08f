"""The command line without a process: run a command, keep what it said."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.cli.main import main


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str


def agentos(*arguments: str, environ: Mapping[str, str]) -> Said:
    out, err = io.StringIO(), io.StringIO()
    code = main(arguments, out=out, err=err, environ=environ)
    return Said(code, out.getvalue(), err.getvalue())
