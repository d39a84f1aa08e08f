"""A process of Stack A that trusts an issuer on this machine: over TLS, through the guard, as its settings say."""

import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import jwt as pyjwt
import pytest

from conformance.people import ACME
from tests.support.http_origin import answer, serving
from tests.support.oidc import DISCOVERY, JWKS, new_key, public_jwk
from tests.support.pki import new_authority
from tests.support.ports import free_ports
from tests.support.real_stacks import ISSUER, ROOT, Process, real_stacks
from tests.support.tokens import claims_of

pytestmark = pytest.mark.anyio


async def test_its_people_are_served_and_nobody_elses(tmp_path: Path) -> None:
    authority, key, answers = new_authority(tmp_path), new_key("ES256"), dict[str, bytes]()
    [*ports, port] = free_ports(3)
    async with real_stacks(tmp_path, ports), serving(answers, tls=authority.server("localhost")) as origin:
        url = f"https://localhost:{origin.port}/realms/acme"
        told = {"issuer": url, "jwks_uri": f"https://localhost:{origin.port}{JWKS}"}
        answers[DISCOVERY] = answer(json.dumps(told).encode())
        answers[JWKS] = answer(json.dumps({"keys": [public_jwk(key, "ES256", kid="one")]}).encode())
        issuers = tmp_path / "issuers.json"
        issuers.write_text(json.dumps({"issuers": [{"name": "acme", "issuer": url, "tenant": ACME.tenant}]}))
        egress = {"allow_private": [f"localhost:{origin.port}"], "ca_file": authority.file}
        environment = {
            "AGENTOS_MODE": "prod",
            "AGENTOS_DATABASE_URL_FILE": str(tmp_path / "dsn"),
            "AGENTOS_ISSUER": ISSUER,
            "AGENTOS_JWKS_FILE": str(tmp_path / "jwks.json"),
            "AGENTOS_ISSUERS_FILE": str(issuers),
            "AGENTOS_EGRESS": json.dumps(egress),
            "AGENTOS_STACK_A_PORT": str(port),
            "PYTHONPATH": str(ROOT),
        }
        api = Process("deploy.roots.stack_a", environment, tmp_path / "stack-a.log", port=port)

        def headers(**changed: object) -> dict[str, str]:
            claims = claims_of(ACME, datetime.now(UTC), **{"iss": url, "sub": "ann", "tenant_id": ..., **changed})
            token = pyjwt.encode(claims, key, algorithm="ES256", headers={"kid": "one", "typ": "at+jwt"})
            return {"authorization": f"Bearer {token}"}

        await api.start()
        try:
            async with httpx.AsyncClient(base_url=api.url, trust_env=False, timeout=30) as client:
                me = await client.get("/v1/me/permissions", headers=headers())
                others = await client.get("/v1/me/permissions", headers=headers(iss="https://localhost/realms/acme"))
        finally:
            await api.end()

    assert (me.status_code, me.json()["tenant_id"], me.json()["principal"]) == (200, ACME.tenant, "acme:ann")
    assert others.status_code == 401
