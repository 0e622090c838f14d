"""What a step reads: text, and how much each of its tokens is to be learned."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Batch(NamedTuple):
    """Rows of text, each T inputs and, one place on, their T targets.

    Attributes:
      tokens: `[B, T + 1]` int32.
      document: `[B, T + 1]` int32, which of its row's documents a token belongs to. Attention stays
        within a document, whose positions begin at 0.
      weight: `[B, T]` float32, how much a target counts: 0 for what is only read, for a document's
        first token and for padding.
      temperature: `[B, T]` float32, of the laws that a loss compares at a target; 0 stands for the
        teacher's likeliest token.
      number: `[B]` int32, of the row in its source, which tells its noise from that of others.
    """

    tokens: Array
    document: Array
    weight: Array
    temperature: Array
    number: Array

    @property
    def positions(self) -> Array:
        """`[B, T]` int32, of the inputs in their documents."""
        document = self.document[:, :-1]
        place = jnp.arange(document.shape[1])[None]
        first = jnp.pad(document[:, 1:] != document[:, :-1], ((0, 0), (1, 0)))
        starts = jnp.where(first, place, 0)
        return place - jnp.maximum.accumulate(starts, axis=1)
