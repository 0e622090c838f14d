"""Committing prompts, chunk by chunk."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jspec.core.cache import Block, Cache, commit, empty_cache
from jspec.models.protocol import Model, Output, Params, one_token, row_dtype

Kept = TypeVar("Kept")
Seen = TypeVar("Seen", Array, None)


def prefill(
    params: Params, tokens: Array, length: Array, *, model: Model, capacity: int, chunk: int
) -> Cache:
    """A cache of `capacity` rows that holds the first `length` of `tokens`, row by row.

    Args:
      tokens: `[B, P]`, P a multiple of `chunk`; ragged rows are filled up on the right.
      length: `[B]` tokens to commit. Chunks that lie behind the longest are not computed.
    """

    sizes = {"model": model, "capacity": capacity, "chunk": chunk}
    return prefill_with_features(params, tokens, length, **sizes, read=lambda output: None)[0]


def prefill_with_features(
    params: Params,
    tokens: Array,
    length: Array,
    *,
    model: Model,
    capacity: int,
    chunk: int,
    read: Callable[[Output], Seen],
) -> tuple[Cache, Seen]:
    """The same, and what is read of the model's passes at the tokens that are committed.

    Args:
      read: what to take of a pass, `[B, T, E]`; None for nothing.
    """

    def run(first: Array, cache: Cache, kept: Seen) -> tuple[Block, Seen]:
        block, seen = _piece(params, tokens, first, cache, model=model, chunk=chunk, read=read)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=1)
        return block, jax.tree.map(put, kept, seen)

    cache = _room(params, tokens, model=model, capacity=capacity, chunk=chunk)
    one = jax.eval_shape(lambda *row: read(model.forward(*row)), params, *one_token())
    kept = jax.tree.map(lambda x: jnp.zeros((*tokens.shape, x.shape[-1]), x.dtype), one)
    return fill(cache, kept, length, chunk=chunk, run=run)


def fill(
    cache: Cache,
    kept: Kept,
    length: Array,
    *,
    chunk: int,
    run: Callable[[Array, Cache, Kept], tuple[Block, Kept]],
) -> tuple[Cache, Kept]:
    """Commits the first `length` `[B]` rows that `run` makes, `chunk` of them at a time.

    Args:
      run: given the first row of a chunk, the cache and what was kept of earlier chunks, returns
        the chunk's rows and what is kept now.
    """
    path = jnp.broadcast_to(jnp.arange(chunk), (len(length), chunk))

    def unfinished(carry: tuple[Array, Cache, Kept]) -> Array:
        return carry[0] < length.max()

    def advance(carry: tuple[Array, Cache, Kept]) -> tuple[Array, Cache, Kept]:
        first, cache, kept = carry
        block, kept = run(first, cache, kept)
        count = jnp.clip(length - first, 0, chunk)
        return first + chunk, commit(cache, block, path, count), kept

    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), cache, kept))[1:]


def _room(params: Params, tokens: Array, *, model: Model, capacity: int, chunk: int) -> Cache:
    """An empty cache for these prompts."""
    batch, prompt = tokens.shape
    if prompt % chunk:
        raise ValueError(f"tokens of {prompt} columns: not a multiple of chunk={chunk}")
    if capacity < prompt:
        raise ValueError(f"capacity={capacity} is less than the {prompt} columns of the prompts")
    return empty_cache(model.config, batch, capacity, row_dtype(params, model=model))


def _piece(
    params: Params,
    tokens: Array,
    first: Array,
    cache: Cache,
    *,
    model: Model,
    chunk: int,
    read: Callable[[Output], Seen],
) -> tuple[Block, Seen]:
    """The rows of a chunk, and what is read of it."""
    piece = jax.lax.dynamic_slice_in_dim(tokens, first, chunk, axis=1)
    positions = jnp.broadcast_to(first + jnp.arange(chunk), piece.shape)
    causal = jnp.tril(jnp.ones((chunk, chunk), bool))
    output = model.forward(params, piece, positions, causal, cache)
    # Written once the last layer has read it, the cache is written in place and not copied.
    return jax.lax.optimization_barrier((output.block, read(output)))
