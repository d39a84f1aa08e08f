"""What runs before each command: leaves somebody behind who ends its process group when the worker is gone.

    python -I -S launch.py <lifeline> <command> [argument …]

`lifeline` is the reading end of a pipe whose other end only the worker holds. The kernel closes that one however the
worker ends, SIGKILL included; what reads it then kills the whole group, the command's own children too. As long as it
waits it is a member of the group, so that the group's id can't become somebody else's.

A script of its own, without imports of ours: it is started for each call. Then the command takes its place, with its
process id, streams and exit code.
"""

import os
import signal
import sys
from typing import Final, NoReturn

CAN_NOT_START: Final = 127
"""As a shell exits for a command that it can't start."""


def watch(lifeline: int) -> NoReturn:
    """Until the lifeline ends; then nobody of the group is left."""
    # The streams are the command's: nobody must wait for us to close them.
    for stream in (0, 1, 2):
        os.close(stream)
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)
    os._exit(0)


def leave_watch(lifeline: int) -> None:
    """Fork it off twice, so that it is no child of the command: a program may wait for all of its children."""
    child = os.fork()
    if child == 0:
        # It outlives whatever the group is asked to end with.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if os.fork() == 0:
            watch(lifeline)
        os._exit(0)
    os.waitpid(child, 0)


def main(lifeline: int, command: list[str]) -> None:
    os.set_inheritable(lifeline, False)
    # Not every event loop closes what it has open, its own ends of the command's streams for one.
    os.closerange(3, lifeline)
    os.closerange(lifeline + 1, os.sysconf("SC_OPEN_MAX"))
    leave_watch(lifeline)
    # This interpreter ignores them, and what is ignored stays so over `exec`.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    # Where it finds no locale it sets this one; nobody gave it to the command.
    os.environ.pop("LC_CTYPE", None)
    try:
        os.execvp(command[0], command)  # noqa: S606 - a list of the operator's, and no shell
    except OSError as error:
        sys.stderr.write(f"{command[0]} can't be started: {error.strerror}\n")
        sys.exit(CAN_NOT_START)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
