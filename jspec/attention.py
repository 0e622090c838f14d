"""Attention of a block's rows to the committed cache and to each other, in one softmax."""

import jax.numpy as jnp
from jax import Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    past_key: Array | None = None,
    past_value: Array | None = None,
    length: Array | None = None,
) -> Array:
    """Mixes values by scaled dot products, in float32, without joining the two sets of keys.

    Args:
      query: `[B, H, T, C]`, `H` a multiple of `K`.
      key, value: `[B, K, N, C]` rows of the block.
      mask: `[T, N]` or `[B, T, N]` bool, which rows of the block a query sees; every query
        must see at least one of them, itself.
      past_key, past_value: `[B, K, S, C]` committed rows; the first `length` `[B]` are seen.

    Returns:
      `[B, H, T, C]`.
    """
    batch, heads, new, channels = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, new, channels)
    mask = jnp.broadcast_to(mask, (batch, new, key.shape[2])).swapaxes(1, 2)
    scores = _scores(grouped, key, mask[:, None, :, None])
    peak = scores.max(axis=2, keepdims=True)
    if past_key is None:
        weights = jnp.exp(scores - peak)
        total, mixed = weights.sum(axis=2), _mix(weights, value)
    else:
        seen = (jnp.arange(past_key.shape[2])[None] < length[:, None])[:, None, :, None]
        past_scores = _scores(grouped, past_key, seen[..., None])
        peak = jnp.maximum(peak, past_scores.max(axis=2, keepdims=True))
        weights, past_weights = jnp.exp(scores - peak), jnp.exp(past_scores - peak)
        total = weights.sum(axis=2) + past_weights.sum(axis=2)
        # A weight of zero would not hide a NaN or an infinity in a row that is not valid.
        past_value = jnp.where(seen, past_value, 0)
        mixed = _mix(weights, value) + _mix(past_weights, past_value)
    return (mixed / total[..., None]).reshape(batch, heads, new, channels).astype(query.dtype)


def _scores(query: Array, key: Array, seen: Array) -> Array:
    """`[B, K, G, T, C]` and `[B, K, N, C]` -> `[B, K, N, G, T]`, `-inf` where not `seen`.

    Keys come first because a product with the cache on the left needs no copy of it on CPU.
    """
    products = jnp.einsum("bknc,bkgtc->bkngt", key, query, preferred_element_type=jnp.float32)
    return jnp.where(seen, products * query.shape[-1] ** -0.5, -jnp.inf)


def _mix(weights: Array, value: Array) -> Array:
    """`[B, K, N, G, T]` and `[B, K, N, C]` -> `[B, K, G, T, C]`."""
    return jnp.einsum(
        "bkngt,bknc->bkgtc", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
