"""Committing prompts, chunk by chunk."""

import jax
import jax.numpy as jnp
from jax import Array

from jspec.cache import Cache, commit, empty_cache
from jspec.models.protocol import Model, Params, row_dtype


def prefill(
    params: Params, tokens: Array, length: Array, *, model: Model, capacity: int, chunk: int
) -> Cache:
    """A cache of `capacity` rows that holds the first `length` of `tokens`, row by row.

    Args:
      tokens: `[B, P]`, P a multiple of `chunk`; ragged rows are filled up on the right.
      length: `[B]` tokens to commit. Chunks that lie behind the longest are not computed.
    """
    batch, prompt = tokens.shape
    if prompt % chunk:
        raise ValueError(f"tokens of {prompt} columns: not a multiple of chunk={chunk}")
    if capacity < prompt:
        raise ValueError(f"capacity={capacity} is less than the {prompt} columns of the prompts")
    cache = empty_cache(model.config, batch, capacity, row_dtype(params, model=model))
    path = jnp.broadcast_to(jnp.arange(chunk), (batch, chunk))
    causal = jnp.tril(jnp.ones((chunk, chunk), bool))

    def unfinished(carry: tuple[Array, Cache]) -> Array:
        return carry[0] < length.max()

    def advance(carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        first, cache = carry
        piece = jax.lax.dynamic_slice_in_dim(tokens, first, chunk, axis=1)
        output = model.forward(params, piece, first + path, causal, cache)
        # Written once the last layer has read it, the cache is written in place and not copied.
        block, _ = jax.lax.optimization_barrier((output.block, output.hidden))
        count = jnp.clip(length - first, 0, chunk)
        return first + chunk, commit(cache, block, path, count)

    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), cache))[1]
