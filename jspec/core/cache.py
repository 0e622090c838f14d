"""Keys and values: those that are committed, those that are speculated, and the one way across.

The two never mix. A forward pass reads the cache and writes only its block, so that a rejected row
needs no undoing. Rows are hidden by `length`, never by zeroing: what lies past it is never read.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.config import ModelConfig, Shape
from jspec.parallel.sharding import ANYWHERE, constrain


@struct.dataclass
class Cache:
    """Committed rows. `k`, `v`: L arrays `[B, K, S, C]`; `length` `[B]` rows are valid.

    >>> empty_cache(Shape(61, 1, 2, 8, 64), batch=3, capacity=16, dtype=jnp.float32).k[0].shape
    (3, 2, 16, 8)
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    length: Array

    @property
    def capacity(self) -> int:
        """S, the rows that it has room for."""
        return self.k[0].shape[2]


@struct.dataclass
class Block:
    """Rows that are being speculated. `k`, `v`: L arrays `[B, K, N, C]`.

    >>> empty_block(Shape(61, 1, 2, 8, 64), batch=3, nodes=4, dtype=jnp.float32).k[0].shape
    (3, 2, 4, 8)
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]


def empty_cache(config: ModelConfig | Shape, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
    """A cache of `capacity` rows a sequence, none of them valid."""
    k, v = _layers(config, batch, capacity, dtype)
    return Cache(k, v, jnp.zeros((batch,), jnp.int32))


def empty_block(config: ModelConfig | Shape, batch: int, nodes: int, dtype: jnp.dtype) -> Block:
    """A block of `nodes` rows a sequence, to be filled level by level."""
    return Block(*_layers(config, batch, nodes, dtype))


def commit(cache: Cache, block: Block, path: Array, count: Array) -> Cache:
    """Moves the first `count` rows of a path from a block to the end of the cache.

    Nothing but this function writes a cache. The rest of the path is written behind `length`,
    where nothing reads it; the capacity must leave room for a whole path.

    Args:
      cache: the rows committed so far.
      block: `[B, K, N, C]` rows.
      path: `[B, A]` indices of block rows, in order.
      count: `[B]` how many of them to keep.
    """

    def append(rows: Array, new: Array) -> Array:
        taken = jnp.take_along_axis(new, path[:, None, :, None], axis=2, mode="clip")
        write = jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))
        kept = write(rows, taken.astype(rows.dtype), cache.length, 1)
        return constrain(kept, "batch", ANYWHERE, None, None)

    return Cache(
        k=tuple(map(append, cache.k, block.k)),
        v=tuple(map(append, cache.v, block.v)),
        length=cache.length + count,
    )


def _layers(
    config: ModelConfig | Shape, batch: int, rows: int, dtype: jnp.dtype
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    shape = (batch, config.num_key_value_heads, rows, config.head_dim)

    def empty() -> Array:
        # The heads live where the parameters that make them live.
        return constrain(jnp.zeros(shape, dtype), "batch", ANYWHERE, None, None)

    k, v = (tuple(empty() for _ in range(config.num_hidden_layers)) for _ in ("keys", "values"))
    return k, v
