"""Training data: fixed blocks, cut once; the batch is a pure function of the step."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Blocks:
    """`tokens` `[n, T + 1]`: each row is T inputs and, one place on, their T targets."""

    tokens: np.ndarray
    seed: int = 0

    def batch_at(self, step: int, size: int) -> np.ndarray:
        """The batch of a step, `[size, T + 1]` int32. Every epoch visits all blocks in a new order.

        Nothing is remembered between calls, so resuming needs nothing but the step.
        """
        count = len(self.tokens)
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), count)
        orders = {
            epoch: np.random.default_rng((self.seed, epoch)).permutation(count)
            for epoch in set(epochs.tolist())
        }
        rows = [orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]
        return self.tokens[rows].astype(np.int32)


def cut(documents: Iterable[str], tokenizer: Tokenizer, end: int, length: int) -> np.ndarray:
    """Documents, each closed by the token `end`, joined and cut into `[n, length + 1]` blocks.

    Neighbouring blocks share one token, so that every token is a target once. What is left over at
    the end is dropped.
    """
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    stream = np.concatenate([np.array([*e.ids, end], np.int32) for e in encoded])
    count = (len(stream) - 1) // length
    if count == 0:
        raise ValueError(
            f"length={length}: the documents hold {len(stream)} tokens, fewer than one block"
        )
    starts = np.arange(count)[:, None] * length
    return stream[starts + np.arange(length + 1)]
