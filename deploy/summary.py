"""What an operator wants to know once the node is up: addresses, credentials, quotas, next commands."""

from deploy import credentials
from deploy.catalogue import admin_url, stack_a_url, stack_b_url, worker_url
from deploy.config import Config
from deploy.node import Node
from deploy.report import Seeded
from ports.agent import AgentLimits
from stack_a.slots import reserve_of

ALERTING = (
    "No alerts are configured on this profile. Metrics are served in Prometheus' format at the /metrics addresses; "
    "there is no Grafana, Prometheus or mail delivery on this node yet."
)


def endpoints(config: Config) -> dict[str, str]:
    a, b, worker, admin = stack_a_url(config), stack_b_url(config), worker_url(config), admin_url(config)
    return {
        "API (Stack A)": f"{a}/v1",
        "API description": f"{a}/openapi.json",
        "Model gateway (Stack B, OpenAI-compatible)": f"{b}/v1",
        "Model gateway description": f"{b}/openapi.json",
        "Administration": f"{admin}/v1/admin: the gateway's configuration; tenants, keys: ./agentos tenant, ./agentos key",
        "Administration description": f"{admin}/openapi.json",
        "Metrics (loopback only)": f"{a}/metrics, {b}/metrics, {worker}/metrics, {admin}/metrics",
        "Logs": "./agentos logs <service> [-f]",
        "Dashboards and traces": "none on this node yet; the metrics and the logs above are all there is",
    }


def quotas(config: Config) -> dict[str, str]:
    """What a tenant gets unless told otherwise, and how to tell."""
    limits = AgentLimits()
    return {
        "model tokens": (
            f"{config.tokens_per_day:,} a UTC day and tenant, hard (AGENTOS_TOKENS_PER_DAY for new tenants, "
            "or ./agentos tenant create … --tokens-per-day)"
        ),
        "models": "all that the node serves (./agentos tenant create … --models)",
        "steps in a run": f"{limits.max_steps} (the agent's own limits)",
        "time for a run": f"{limits.deadline_s} s (the agent's own limits, or deadline_s when it is created)",
        "runs at a time": _slots(config.worker_concurrency),
    }


def _slots(concurrency: int) -> str:
    kept = reserve_of(concurrency)
    beside = f", {kept} of them for tenants that have nothing running" if kept else ""
    return f"{concurrency} on this node's worker (AGENTOS_WORKER_CONCURRENCY){beside}"


def credentials_note(node: Node) -> str:
    tokens = node.secret(credentials.TOKENS)
    keys = f"API keys: {tokens} (0600; this file is the only copy)." if tokens.exists() else "No API key was issued."
    return (
        f"{keys} All generated secrets: {node.secrets} (0700). "
        "Rotate a key: ./agentos key rotate <key id> --tenant <tenant>, which ends the old one after a grace; "
        "a revoked key is refused within 5 s. Rotate the signing key: ./agentos token rotate-key; "
        "with --revoke, tokens signed before are refused from then on."
    )


def next_commands(node: Node, config: Config, seeded: Seeded | None) -> tuple[str, ...]:
    """Ready to paste."""
    a, b = stack_a_url(config), stack_b_url(config)
    if seeded is None:
        return (
            "./agentos tenant create tnt_<name> --admin-key",
            "./agentos agent publish <spec.json> --tenant tnt_<name>",
            "./agentos status",
            "./agentos validate",
        )
    tokens = node.secret(credentials.TOKENS)
    read = f'python3 -c \'import json,sys; print(json.load(open(sys.argv[1]))["keys"]["app"]["api_key"])\' \'{tokens}\''
    return (
        f'./agentos run {seeded.agent_id} "What is 17.5 % of 2340, and how many words are in: to be or not to be?"',
        f'KEY="$({read})"',
        (
            f"curl -sS {a}/v1/agents/{seeded.agent_id}/runs -H \"Authorization: Bearer $KEY\" -H 'Idempotency-Key: first'"
            " -H 'Content-Type: application/json' -d '{\"input\": \"What is 2 + 2?\"}'"
        ),
        f'curl -sSN {a}/v1/runs/<run_id>/events -H "Authorization: Bearer $KEY"',
        f'curl -sS {b}/v1/models -H "Authorization: Bearer $KEY"',
        "./agentos tenant create tnt_<name> --admin-key --sample-agent",
        "./agentos validate",
    )
