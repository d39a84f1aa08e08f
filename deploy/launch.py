"""Start one service with exactly the environment written for it: `python -m deploy.launch <file> <digest> <command…>`.

supervisord would hand every child its own environment too, and its configuration has no way to quote every value. The
digest is not read: it makes a changed environment a changed command, which is what supervisord compares.
"""

import os
import sys
from pathlib import Path
from typing import Final

import msgspec

_USAGE: Final = 2


def main(arguments: list[str]) -> None:
    if len(arguments) < 3:  # noqa: PLR2004 - the three of the docstring
        print("usage: python -m deploy.launch <environment file> <digest> <command> …", file=sys.stderr)
        sys.exit(_USAGE)
    path, _, *command = arguments
    environment = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, str])
    os.execve(command[0], command, environment)  # noqa: S606 - replacing this process is the point


if __name__ == "__main__":
    main(sys.argv[1:])
