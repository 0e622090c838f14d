"""Verification rules: which candidates the target accepts, and the token it adds."""

from jspec.verify.coupling import ByConfidence, Coupled, OneSample
from jspec.verify.paths import BlockVerification, TraversalVerification
from jspec.verify.recursive import WithoutReplacement, WithReplacement
from jspec.verify.registry import NamedRule, get, names, register
from jspec.verify.rejection import TokenLevel

coupled = register(Coupled())
one_sample = register(OneSample())
by_confidence = register(ByConfidence())
token_level = register(TokenLevel())
block = register(BlockVerification())
traversal = register(TraversalVerification())
with_replacement = register(WithReplacement())
without_replacement = register(WithoutReplacement())

__all__ = [
    "NamedRule",
    "block",
    "by_confidence",
    "coupled",
    "get",
    "names",
    "one_sample",
    "register",
    "token_level",
    "traversal",
    "with_replacement",
    "without_replacement",
]
