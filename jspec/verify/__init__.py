"""Verification rules: which of the candidates the target keeps, and the token it adds."""

from jspec.verify import (
    by_confidence,
    coupled,
    one_sample,
    token_level,
    with_replacement,
    without_replacement,
)

__all__ = [
    "by_confidence",
    "coupled",
    "one_sample",
    "token_level",
    "with_replacement",
    "without_replacement",
]
