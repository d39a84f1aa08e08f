"""PiiDetector by patterns and checksums: no model, no dependency, the reference for richer detectors.

`checks.py` knows the checksums, `detector.py` finds.
"""

from adapters.regex_pii.detector import SPEC, RegexPii, find

__all__ = ["SPEC", "RegexPii", "find"]
