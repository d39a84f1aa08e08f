"""ToolPort over commands that the operator declares in a file: a tool in any language. See `docs/tools.md`.

`declared.py` reads the file, `port.py` checks arguments and judges answers, `command.py` runs one command and ends it with
all that it started, `launch.py` is the first thing that runs in each command's process.
"""
