"""PiiDetector by Presidio's recognisers on top of our patterns. Needs the extra `presidio`.

`detector.py` decides when Presidio has to look and where, `engine.py` is all that imports it.
"""

from adapters.presidio_pii.detector import SPEC, PresidioConfig, PresidioPii

__all__ = ["SPEC", "PresidioConfig", "PresidioPii"]
