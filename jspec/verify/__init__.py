"""Verification rules: which of the candidates the target keeps, and the token it adds."""

from jspec.verify import (
    block,
    by_confidence,
    coupled,
    one_sample,
    token_level,
    traversal,
    with_replacement,
    without_replacement,
)

__all__ = [
    "block",
    "by_confidence",
    "coupled",
    "one_sample",
    "token_level",
    "traversal",
    "with_replacement",
    "without_replacement",
]
