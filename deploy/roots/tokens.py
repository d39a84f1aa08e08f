"""Who is believed at a surface's door: the node's own issuer, and those that the operator's file names."""

from deploy.roots.environment import Environment
from deploy.roots.tools import egress_of_a_node
from deploy.roots.wiring import Choice


def verifier_of_a_node(env: Environment, audience: str) -> dict[str, Choice]:
    """The verifier, and the way out that it finds the keys of other issuers by."""
    config = {"issuer": env.required("ISSUER"), "audience": audience, "jwks_file": env.required("JWKS_FILE")}
    egress = egress_of_a_node(env.text("EGRESS"))
    issuers = env.text("ISSUERS_FILE")
    if not issuers:
        return {"verifier": Choice(adapter="tokens", config={**config}), "egress": egress}
    return {"verifier": Choice(adapter="issuers", config={**config, "issuers_file": issuers}), "egress": egress}
