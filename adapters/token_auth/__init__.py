"""Tokens of the node: API keys and signed access tokens, issued and verified.

`keys.py` and `jwt.py` are the two forms and know no store; `verifier.py` puts them together with the tenant directory;
`issuer.py` mints for calls between the stacks.
"""
