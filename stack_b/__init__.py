"""Stack B: the model gateway.

An OpenAI-compatible surface in front of any backend, with entitlement, policy and a hard budget on every request.
`pipeline` reads in the order things happen; `http` is the wire, `backends` are the models.
"""
