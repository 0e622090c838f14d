"""Prompts of different lengths as one batch."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from flax import struct
from jax import Array

PREFILL_CHUNK = 64


@struct.dataclass
class PaddedPrompts:
    """Prompts padded on the right.

    >>> pad_prompts([[5, 3, 9], [7]], context_length=128, max_new_tokens=16).tokens.shape
    (2, 64)

    Attributes:
      tokens: `[B, P]` int32.
      length: `[B]` int32, how many tokens of each row are the prompt.
    """

    tokens: Array
    length: Array


def pad_prompts(
    rows: Sequence[Sequence[int]],
    *,
    context_length: int,
    max_new_tokens: int,
    vocab_size: int | None = None,
    bucket: int = PREFILL_CHUNK,
) -> PaddedPrompts:
    """Token lists as one padded batch, its width rounded up to a multiple of `bucket`.

    One compiled program serves all batches of a width.

    >>> pad_prompts([[5, 3, 9], [7]], context_length=128, max_new_tokens=16).length
    array([3, 1], dtype=int32)

    Raises `ValueError` for an empty prompt, one that leaves less room in the `context_length` than
    `max_new_tokens`, or a token that is not in the vocabulary, where its size is given.
    """
    if not rows:
        raise ValueError("prompts=[]: at least one prompt is needed")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: at least one token is generated")
    for index, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"prompt {index} is empty: it needs at least one token")
        if min(row) < 0 or (vocab_size is not None and max(row) >= vocab_size):
            last = "" if vocab_size is None else vocab_size - 1
            raise ValueError(
                f"prompt {index} holds tokens {min(row)}..{max(row)}: tokens are 0..{last}"
            )
        excess = len(row) + max_new_tokens - context_length
        if excess > 0:
            raise ValueError(
                f"prompt {index} has {len(row)} tokens, which with {max_new_tokens} new ones is "
                f"{excess} more than the context of {context_length}: shorten it or ask for fewer"
            )
    width = -(-max(map(len, rows)) // bucket) * bucket
    padded = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    length = np.array([len(row) for row in rows], np.int32)
    # NumPy arrays, which every mesh and every process takes as they are.
    return PaddedPrompts(cast(Any, padded), cast(Any, length))
