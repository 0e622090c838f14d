"""The attention sublayer, and the part of it that any model with a cache has."""

from typing import NamedTuple

import jax
from flax import linen as nn
from jax import Array

from jspec.attention import attend
from jspec.cache import Block, Cache
from jspec.config import ModelConfig
from jspec.models.linear import Linear
from jspec.models.norms import NORMS
from jspec.models.rope import Turn, rotate

Rows = tuple[Array, Array]


class Sight(NamedTuple):
    """What the queries of a layer look through.

    Attributes:
      turn: their rotary angles; None where positions are learned.
      mask: `[T, N]` or `[B, T, N]`, the block's rows that each sees.
      first: `[B, T]` the first committed row that each sees; None for all.
    """

    turn: Turn | None
    mask: Array
    first: Array | None = None


class Attention(nn.Module):
    """Grouped-query attention of layer `index`."""

    config: ModelConfig
    index: int

    @nn.compact
    def __call__(
        self, x: Array, sight: Sight, cache: Cache | None, block: Block | None, start: int
    ) -> tuple[Array, Rows]:
        """`x` `[B, T, D]` -> `[B, T, D]` and the block's keys and values `[B, K, N, C]`."""
        c = self.config

        def heads(name: str, count: int, axis: str) -> Array:
            y = Linear(count * c.channels, (axis, "width"), c.attention_bias, name=name)(x)
            return y.reshape(*x.shape[:2], count, c.channels).swapaxes(1, 2)

        query = heads("query", c.heads, "heads")
        key = heads("key", c.kv_heads, "kv_heads")
        value = heads("value", c.kv_heads, "kv_heads")
        if c.query_key_norm:
            query = NORMS[c.norm](c.epsilon, name="query_norm")(query)
            key = NORMS[c.norm](c.epsilon, name="key_norm")(key)
        if sight.turn is not None:
            query, key = rotate(query, sight.turn), rotate(key, sight.turn)
        mixed, rows = attend_layer(
            query,
            key,
            value,
            sight.mask,
            cache,
            block,
            start,
            layer=self.index,
            first=sight.first,
            scale=None if c.query_scalar is None else c.query_scalar**-0.5,
            cap=c.score_cap,
        )
        mixed = mixed.swapaxes(1, 2).reshape(*x.shape[:2], c.heads * c.channels)
        return Linear(c.width, ("width", "heads"), c.out_bias, name="out")(mixed), rows


def attend_layer(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    cache: Cache | None,
    block: Block | None,
    start: int,
    *,
    layer: int,
    first: Array | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[Array, Rows]:
    """Puts one layer's new rows into its block, and attends to that and to its cache.

    Args:
      query: `[B, H, T, C]`; key, value: `[B, K, T, C]`, all with their positions in them.
      mask, cache, block, start: as `Model.forward` has them.
      layer: which layer's rows to take from cache and block.
      first, scale, cap: `attend`'s.

    Returns:
      `[B, H, T, C]`, and the block's keys and values `[B, K, N, C]`.
    """
    if block is not None:
        put = jax.lax.dynamic_update_slice_in_dim
        key, value = put(block.k[layer], key, start, 2), put(block.v[layer], value, start, 2)
    past = () if cache is None else (cache.k[layer], cache.v[layer], cache.length)
    visible = mask.shape[-1]
    shown = key[:, :, :visible], value[:, :, :visible]
    mixed = attend(query, *shown, mask, *past, first=first, scale=scale, cap=cap)
    return mixed, (key, value)
