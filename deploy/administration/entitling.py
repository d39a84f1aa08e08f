"""Changes of what a tenant may have: what is not named stays as it is."""

from typing import Any, Final

import msgspec

from ports.context import AuthContext
from ports.errors import Conflict
from ports.http.edge import decoded
from ports.ids import TenantId
from ports.tenant import Entitlements, Tenant, TenantDirectory
from stack_b.policies.problems import check_policy

TRIES: Final = 5
"""How often a change of whatever is there is tried while others change it too."""


def entitled(known: Entitlements, changes: dict[str, Any]) -> Entitlements:
    """`known`, with these members instead.

    Raises:
        InvalidArgument: `validation_failed`, with the member that is wrong; or all that is wrong with the policy.
    """
    wanted = decoded({**msgspec.to_builtins(known), **changes}, Entitlements)
    if wanted.policy != known.policy:
        check_policy(wanted.policy)
    return wanted


async def change_entitlements(
    tenants: TenantDirectory, auth: AuthContext, tenant: TenantId, changes: dict[str, Any], version: int | None
) -> Tenant:
    """The tenant with these members instead, at `version`; None: whatever is there.

    Raises:
        Conflict: it is not at `version`, or others changed it before each of `TRIES`.
    """
    tries_left = TRIES if version is None else 1
    while True:
        known = await tenants.get(auth, tenant)
        wanted = entitled(known.entitlements, changes)
        tries_left -= 1
        try:
            # What is not named stays as it was when it was read here.
            return await tenants.set_entitlements(
                auth, tenant, wanted, if_match=known.version if version is None else version
            )
        except Conflict:
            if not tries_left:
                raise
