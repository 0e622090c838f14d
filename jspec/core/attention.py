"""Attention of a block's rows to the committed cache and to each other, in one softmax."""

import jax
import jax.numpy as jnp
from jax import Array

from jspec.core.products import contract, score


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    past_key: Array | None = None,
    past_value: Array | None = None,
    length: Array | None = None,
    *,
    first: Array | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Array:
    """Mixes values by scaled dot products, in float32, without joining the two sets of keys.

    Args:
      query: `[B, H, T, C]`, `H` a multiple of `K`.
      key, value: `[B, K, N, C]` rows of the block, as `hide_overflow` gives them beside a cache.
      mask: `[T, N]` or `[B, T, N]` bool, which rows of the block a query sees; every query
        must see at least one of them, itself.
      past_key, past_value: `[B, K, S, C]` committed rows; the first `length` `[B]` are seen.
      first: `[B, T]` the first committed row that each query sees; None when it sees all.
      scale: of the products; None for the inverse root of C.
      cap: the soft cap of scores, by a hyperbolic tangent; None for none.

    Returns:
      `[B, H, T, C]`.
    """
    batch, heads, new, channels = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, new, channels)
    factor = channels**-0.5 if scale is None else scale
    mask = jnp.broadcast_to(mask, (batch, new, key.shape[2]))[:, None, None]
    scores = _soft_cap(contract("bkgtc,bknc->bkgtn", grouped, key) * factor, cap)
    scores = jnp.where(mask, scores, -jnp.inf)
    # Each query's best score keeps `exp` in range, and cancels: it has no gradient.
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    if past_key is None or past_value is None or length is None:
        weights = jnp.exp(scores - peak)
        total = weights.sum(axis=-1, keepdims=True)
        mixed = contract("bkgtn,bknc->bkgtc", weights.astype(value.dtype), value)
    else:
        rows = jnp.arange(past_key.shape[2], dtype=jnp.int32)[None]
        valid = rows < length[:, None]
        seen = valid[:, None]
        if first is not None:
            seen = seen & (rows[:, None] >= first[..., None])
        past_scores = _soft_cap(score(grouped, past_key) * factor, cap)
        past_scores = jnp.where(seen[:, None, None], past_scores, -jnp.inf)
        peak = jnp.maximum(peak, past_scores.max(axis=-1, keepdims=True))
        weights, past_weights = jnp.exp(scores - peak), jnp.exp(past_scores - peak)
        total = weights.sum(axis=-1, keepdims=True) + past_weights.sum(axis=-1, keepdims=True)
        # A weight of zero would not hide a NaN or an infinity in a row that is not valid.
        past_value = jnp.where(valid[:, None, :, None], past_value, 0)
        mixed = contract("bkgtn,bknc->bkgtc", weights.astype(value.dtype), value)
        mixed += contract("bkgtn,bknc->bkgtc", past_weights.astype(value.dtype), past_value)
    return (mixed / total).reshape(batch, heads, new, channels).astype(query.dtype)


def hide_overflow(key: Array, value: Array) -> tuple[Array, Array]:
    """NaN for the keys of values that are not finite, and zeros for these values.

    A weight of zero does not hide such a value from the queries that do not see its row, which in a
    tree are those of other branches. Scores are masked, so a key that is NaN reaches those alone
    that see it.

    Args:
      key, value: `[B, K, N, C]`.
    """
    return key + 0 * value, jnp.where(jnp.isfinite(value), value, 0)


def window_mask(window: int, mask: Array, positions: Array) -> tuple[Array, Array]:
    """The mask of queries that see `window` positions, their own included.

    The rows that a query sees in a block are the end of its sequence, one a position and in order,
    be they a chunk or a path in a tree. So a row's distance in positions is the number of rows
    behind it that the query sees.

    Args:
      mask: `[T, N]` or `[B, T, N]` bool, which rows of the block a query sees.
      positions: `[B, T]` of the queries.

    Returns:
      The mask without the rows that are too far, and `[B, T]` the first committed row in reach.
    """
    mask = jnp.asarray(mask)
    seen = mask.astype(jnp.int32)
    total = seen.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    behind = total - jnp.cumsum(seen, axis=-1, dtype=jnp.int32)
    return mask & (behind < window), positions - window + 1


def _soft_cap(scores: Array, cap: float | None) -> Array:
    return scores if cap is None else cap * jnp.tanh(scores / cap)
