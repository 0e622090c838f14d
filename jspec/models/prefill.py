"""Committing prompts, chunk by chunk."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jspec.core.cache import Block, Cache, commit, empty_cache
from jspec.models.protocol import Model, Output, Params, one_token, row_dtype

Carry = TypeVar("Carry")
# What is read of a pass.
States = TypeVar("States", Array, None)


def prefill(
    params: Params, tokens: Array, length: Array, *, model: Model, capacity: int, chunk: int
) -> Cache:
    """A cache of `capacity` rows that holds the first `length` of `tokens` of each sequence.

    Args:
      tokens: `[B, P]`, P a multiple of `chunk`; shorter rows are padded on the right.
      length: `[B]` tokens to commit. Chunks behind the longest are not computed.
    """

    sizes = {"model": model, "capacity": capacity, "chunk": chunk}
    return prefill_with_hidden_states(params, tokens, length, **sizes, read=lambda _: None)[0]


def prefill_with_hidden_states(
    params: Params,
    tokens: Array,
    length: Array,
    *,
    model: Model,
    capacity: int,
    chunk: int,
    read: Callable[[Output], States],
) -> tuple[Cache, States]:
    """`prefill`, and what `read` takes of the model's passes at the committed tokens.

    Args:
      read: what to take of a pass, `[B, T, E]`; None for nothing.

    Returns:
      The cache, and `[B, P, E]` or None.
    """

    def run(first: Array, cache: Cache, states: States) -> tuple[Block, States]:
        block, new = _run_chunk(params, tokens, first, cache, model=model, chunk=chunk, read=read)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=1)
        return block, jax.tree.map(put, states, new)

    cache = _empty_cache(params, tokens, model=model, capacity=capacity, chunk=chunk)
    one = jax.eval_shape(lambda *row: read(model.forward(*row)), params, *one_token())
    states = jax.tree.map(lambda x: jnp.zeros((*tokens.shape, x.shape[-1]), x.dtype), one)
    return fill(cache, states, length, chunk=chunk, run=run)


def fill(
    cache: Cache,
    carry: Carry,
    length: Array,
    *,
    chunk: int,
    run: Callable[[Array, Cache, Carry], tuple[Block, Carry]],
) -> tuple[Cache, Carry]:
    """Commits the first `length` `[B]` rows that `run` makes, `chunk` of them at a time.

    Args:
      run: given the first row of a chunk, the cache and the carry of earlier chunks, returns the
        chunk's rows and the new carry.
    """
    path = jnp.broadcast_to(jnp.arange(chunk, dtype=jnp.int32), (len(length), chunk))

    def unfinished(state: tuple[Array, Cache, Carry]) -> Array:
        return state[0] < length.max()

    def advance(state: tuple[Array, Cache, Carry]) -> tuple[Array, Cache, Carry]:
        first, cache, carry = state
        block, carry = run(first, cache, carry)
        count = jnp.clip(length - first, 0, chunk)
        return first + chunk, commit(cache, block, path, count), carry

    _, cache, carry = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), cache, carry))
    return cache, carry


def _empty_cache(
    params: Params, tokens: Array, *, model: Model, capacity: int, chunk: int
) -> Cache:
    """A cache for these prompts."""
    batch, prompt = tokens.shape
    if prompt % chunk:
        raise ValueError(f"tokens of {prompt} columns: not a multiple of chunk={chunk}")
    if capacity < prompt:
        raise ValueError(f"capacity={capacity} is less than the {prompt} columns of the prompts")
    return empty_cache(model.config, batch, capacity, row_dtype(params, model=model))


def _run_chunk(
    params: Params,
    tokens: Array,
    first: Array,
    cache: Cache,
    *,
    model: Model,
    chunk: int,
    read: Callable[[Output], States],
) -> tuple[Block, States]:
    """The rows of a chunk, and what is read of it."""
    piece = jax.lax.dynamic_slice_in_dim(tokens, first, chunk, axis=1)
    positions = jnp.broadcast_to(first + jnp.arange(chunk, dtype=jnp.int32), piece.shape)
    causal = jnp.tril(jnp.ones((chunk, chunk), bool))
    output = model.forward(params, piece, positions, causal, cache)
    # The barrier lets XLA write the cache in place: all layers have read it by then.
    return jax.lax.optimization_barrier((output.block, read(output)))
