"""The tools of a node: the built-in ones, and the commands its operator declares."""

from deploy.roots.wiring import Choice


def tools_of_a_node(file: str) -> Choice:
    """The adapter for the tool port; `file` declares the commands, and is empty where there are none."""
    if not file:
        return Choice(adapter="builtin")
    commands = {"adapter": "commands", "config": {"file": file}}
    return Choice(adapter="joined", config={"parts": [{"adapter": "builtin"}, commands]})
