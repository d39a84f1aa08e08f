"""ProviderPort by LiteLLM. Needs the extra `litellm`, and loads it when the first provider is prepared, not before.

`makers.py` says which providers and what each needs, `request.py` what may be passed on, `errors.py` what its errors mean;
`vendor.py` is all that imports LiteLLM, and `wire.py` the only way in which it reaches the network.
"""

from adapters.litellm_provider.provider import SPEC, LiteLlmConfig, LiteLlmProvider

__all__ = ["SPEC", "LiteLlmConfig", "LiteLlmProvider"]
