"""A command of many talents, for tests of the adapter that runs commands: `sample_command.py <talent> <store>`.

A program of its own, without imports of ours, as an operator would write one.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

talent, store = sys.argv[1], Path(sys.argv[2])
given = json.load(sys.stdin)
own = store / given["tenant"] / given["namespace"]
own.mkdir(parents=True, exist_ok=True)
kept = own / given["key"].replace("/", "_")


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value))


def tell(name: str) -> None:
    """One line in a file of the store, by a single write."""
    handle = os.open(store / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{given['key']} {os.getpid()}\n".encode())
    os.close(handle)


match talent:
    case "add":
        answer(given["arguments"]["a"] + given["arguments"]["b"])
    case "note":
        if not kept.exists():
            kept.write_text(given["arguments"]["text"])
            tell("effects")
        answer({"kept": True})
    case "lose":
        tell("effects")
        os.kill(os.getpid(), signal.SIGKILL)
    case "noted":
        answer({"acted": True, "output": {"kept": True}} if kept.exists() else {"acted": False})
    case "notes":
        answer(sorted(path.read_text() for path in own.iterdir()))
    case "flood":
        answer("x" * 2_000)
    case "wait" | "stubborn" | "tidy" | "send":
        if talent == "send":
            kept.write_text("sent")
            tell("effects")
        if talent == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if talent == "tidy":

            def tidy(_number: int, _frame: object) -> None:
                time.sleep(0.5)
                tell("tidied")
                sys.exit(0)

            signal.signal(signal.SIGTERM, tidy)
        tell("began")
        # The child of the command, which nobody but its group knows.
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + 600
        while time.monotonic() < end:
            tell("beats")
            time.sleep(0.05)
