"""Where the addresses of a node's homes are written.

`AGENTOS_HOMES` names them. Like the node's own database each is reached by files in the secrets directory, so that no
password stands in an environment.
"""

from collections.abc import Callable

from deploy.config import Config
from deploy.home_settings import parse_homes
from deploy.node import Node


def url_file(home: str) -> str:
    """Apart by what no name of a home has."""
    return f"home.{home}.url"


def owner_url_file(home: str) -> str:
    return f"home.{home}.owner_url"


def control_url_file(home: str) -> str:
    return f"home.{home}.control_url"


def homes_set_up(node: Node) -> list[str]:
    """The homes that an `up` has written addresses of."""
    return sorted(path.name.split(".")[1] for path in node.secrets.glob(url_file("*")))


def environment_of(node: Node, config: Config, *, file: Callable[[str], str] = url_file) -> dict[str, str]:
    """For services that serve tenants of all homes: where each address is written; nothing without homes."""
    homes = parse_homes(config.homes)
    files = ";".join(f"{home.name}={node.secret(file(home.name))}" for home in homes)
    return {"AGENTOS_HOME_URL_FILES": files} if files else {}
