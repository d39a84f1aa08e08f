"""A line for each service of a node: where it is, and whether it is well."""

from deploy.catalogue import Service
from deploy.health import probe
from deploy.report import ServiceLine
from deploy.supervision import Supervisor


def service_lines(services: tuple[Service, ...], supervisor: Supervisor) -> list[ServiceLine]:
    """Every service as it is at this moment."""
    states = supervisor.states() if supervisor.alive() else {}
    lines = []
    for service in services:
        health = probe(service)
        state = states.get(service.name)
        lines.append(
            ServiceLine(
                name=service.name,
                address=f"{service.listens.host}:{service.listens.number}",
                state=state.state if state else "not supervised",
                pid=state.pid if state else 0,
                healthy=health.ok,
                detail=health.detail if health.ok or not state else f"{health.detail} {state.remark}".strip(),
            )
        )
    return lines
