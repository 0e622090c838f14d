"""Verification rules: which of the candidates the target keeps, and the token it adds."""

from jspec.verify import (
    coupled,
    one_sample,
    token_level,
    with_replacement,
    without_replacement,
)

__all__ = ["coupled", "one_sample", "token_level", "with_replacement", "without_replacement"]
