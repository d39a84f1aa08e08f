"""The homes of a node, set up: databases that tenants may live in beside the shared one (ADR 0039). Each has a worker of
its own."""

import asyncio
from collections.abc import Mapping

from adapters.postgres.bootstrap import APP, CONTROL, OWNER, bootstrap
from adapters.postgres.maintenance import make_event_days
from adapters.postgres.migrate import migrate
from adapters.postgres.move_job import Places
from adapters.postgres.move_tables import SHARED
from deploy import credentials
from deploy.config import Config, dereference
from deploy.credentials import embedded_url, write_if_changed
from deploy.embedded_postgres import SUPERUSER
from deploy.home_files import control_url_file, homes_set_up, owner_url_file, url_file
from deploy.home_settings import Home, parse_homes
from deploy.node import Node
from ports.errors import InvalidArgument, Unavailable


def prepare_homes(node: Node, config: Config, environ: Mapping[str, str]) -> list[str]:
    """Make embedded ones, write addresses and bring every home up to this version; what was applied.

    Raises:
        InvalidArgument: a reference leads nowhere.
        Unavailable: a home does not answer.
    """
    applied: list[str] = []
    homes = parse_homes(config.homes)
    for gone in set(homes_set_up(node)) - {home.name for home in homes}:
        for file in (url_file, owner_url_file, control_url_file):
            node.secret(file(gone)).unlink(missing_ok=True)
    for home in homes:
        if not home.url:
            passwords = credentials.database_passwords(node)
            admin = embedded_url(SUPERUSER, passwords.superuser, config.postgres_port, SUPERUSER)
            asyncio.run(bootstrap(admin, passwords.roles(), database=home.database))
            url = embedded_url(APP, passwords.app, config.postgres_port, home.database)
            owner = embedded_url(OWNER, passwords.owner, config.postgres_port, home.database)
            control = embedded_url(CONTROL, passwords.control, config.postgres_port, home.database)
        else:
            references = (home.url, home.owner_url, home.control_url)
            url, owner, control = (_found(home, reference, environ) for reference in references)
        write_if_changed(node.secret(url_file(home.name)), url)
        write_if_changed(node.secret(owner_url_file(home.name)), owner)
        write_if_changed(node.secret(control_url_file(home.name)), control)
        applied += [f"{home.name}/{name}" for name in asyncio.run(migrate(owner))]
        asyncio.run(make_event_days(owner))
    return applied


def _found(home: Home, reference: str, environ: Mapping[str, str]) -> str:
    if not (address := dereference(reference, environ)):
        raise InvalidArgument(
            f"AGENTOS_HOMES: {reference} of the home {home.name!r} leads nowhere; set it for this command"
        )
    return address


def places_of(node: Node, config: Config) -> Places:
    """The owner's addresses of all homes. Raises `Unavailable` before the first `up`."""
    files = {SHARED: credentials.OWNER_URL}
    files |= {home.name: owner_url_file(home.name) for home in parse_homes(config.homes)}
    dsns: dict[str, str] = {}
    for name, file in files.items():
        if not node.secret(file).exists():
            raise Unavailable(f"the home {name!r} was never set up on this node; run ./agentos up")
        dsns[name] = node.secret(file).read_text(encoding="utf-8").strip()
    return Places(dsns=dsns)
