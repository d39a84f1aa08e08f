"""The tools of a node: the built-in ones, and the commands its operator declares; and where their calls may go."""

import msgspec

from adapters.egress import EgressConfig, egress_rules
from deploy.roots.wiring import Choice
from ports.errors import InvalidArgument


def tools_of_a_node(file: str) -> Choice:
    """The adapter for the tool port; `file` declares the commands, and is empty where there are none."""
    if not file:
        return Choice(adapter="builtin")
    commands = {"adapter": "commands", "config": {"file": file}}
    return Choice(adapter="joined", config={"parts": [{"adapter": "builtin"}, commands]})


def egress_of_a_node(text: str) -> Choice:
    """The adapter for the egress port, with what the JSON object in `text` says. Raises `InvalidArgument`."""
    try:
        config = msgspec.json.decode(text or "{}", type=EgressConfig)
        egress_rules(config)
    except (msgspec.DecodeError, InvalidArgument) as error:
        raise InvalidArgument(
            f'AGENTOS_EGRESS is not usable: {error}; write a JSON object such as {{"allow_private": ["wiki.example:8443"]}}'
        ) from None
    return Choice(adapter="guarded", config=msgspec.to_builtins(config))
