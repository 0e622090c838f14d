"""Many candidates a round, exact and as published, with and without decisions to stop drafting.

Importing it registers the published rule: `jspec.verify.get("lossy")`.
"""

from jspec.studies.multi_candidate.lossy import LOSSY

__all__ = ["LOSSY"]
