"""The kit's pytest plugin. It is loaded in every test run of everyone who installs us: it imports pytest, no more.

It registers the marker `clause`, turns declared deviations into strict expected failures, and writes a report by clause
where `--clause-report` asks for one.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agentos", "AgentOS conformance kit")
    group.addoption(
        "--clause-report",
        metavar="PATH",
        default=None,
        help="write a report with one entry per clause: JSON if PATH ends in .json, else text",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(*ids): the clauses of a port's specification this test proves")
    if config.getoption("--clause-report") is not None:
        from conformance.report import ClauseReport  # noqa: PLC0415 - who asks for no report pays for no import

        config.pluginmanager.register(ClauseReport(config.getoption("--clause-report")), "agentos-clause-report")


def pytest_itemcollected(item: pytest.Item) -> None:
    clauses = [one for mark in item.iter_markers("clause") for one in mark.args]
    if not clauses:
        return
    item.user_properties.append(("agentos_clauses", clauses))
    deviations = getattr(getattr(item, "cls", None), "deviations", {})
    for one in clauses:
        if one in deviations:
            item.add_marker(pytest.mark.xfail(reason=f"deviates from {one}: {deviations[one]}", strict=True))
