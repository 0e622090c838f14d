"""Prompts of different lengths as one batch."""

from collections.abc import Sequence

import numpy as np
from flax import struct
from jax import Array

CHUNK = 64


@struct.dataclass
class Prompts:
    """`tokens` `[B, P]`, filled up on the right; the first `length` `[B]` of each row count."""

    tokens: Array
    length: Array


def prompts(
    rows: Sequence[Sequence[int]],
    *,
    context: int,
    tokens: int,
    vocabulary: int | None = None,
    bucket: int = CHUNK,
) -> Prompts:
    """Token lists as one ragged batch, its width rounded up to a multiple of `bucket`.

    One compiled program serves all batches of a width. Raises `ValueError` for an empty prompt, one
    that leaves less room in the `context` than the new `tokens` need, or a token that is not in
    the `vocabulary`, where its size is given.
    """
    if not rows:
        raise ValueError("prompts=[]: at least one prompt is needed")
    if tokens < 1:
        raise ValueError(f"tokens={tokens}: at least one token is written")
    for index, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"prompt {index} is empty: it needs at least one token")
        if min(row) < 0 or (vocabulary is not None and max(row) >= vocabulary):
            last = "" if vocabulary is None else vocabulary - 1
            raise ValueError(
                f"prompt {index} holds tokens {min(row)}..{max(row)}: tokens lie in 0..{last}"
            )
        excess = len(row) + tokens - context
        if excess > 0:
            raise ValueError(
                f"prompt {index} has {len(row)} tokens, which with {tokens} new ones is {excess} "
                f"more than the context of {context}: shorten it or ask for fewer"
            )
    width = -(-max(map(len, rows)) // bucket) * bucket
    padded = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return Prompts(padded, np.array([len(row) for row in rows], np.int32))
