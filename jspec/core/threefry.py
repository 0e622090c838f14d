"""Random numbers as a pure function of a key and a count: Threefry-2x32.

The numbers are those of `jax.random`, which tests hold. Written out, the rounds fuse with whatever
uses them; as the primitive that `jax.random` lowers to on CPU they take three times as long, of
every round of decoding.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)


def gumbel(key: Array, count: Array | int, size: int) -> Array:
    """`jax.random.gumbel(jax.random.fold_in(key, count), (size,))`: `[size]` float32."""
    words = jax.random.key_data(key)
    if words.shape != (2,):
        raise ValueError(
            f"keys of {jax.random.key_impl(key)}: noise is Threefry's, so make them by "
            "jax.random.key(seed, impl='threefry2x32')"
        )
    low, high = words
    low, high = _threefry(low, high, jnp.uint32(0), jnp.asarray(count, jnp.uint32))
    counter = jnp.arange(size, dtype=jnp.uint32)
    left, right = _threefry(low, high, jnp.zeros_like(counter), counter)
    return -jnp.log(-jnp.log(_uniform(left ^ right)))


def _threefry(low: Array, high: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """Twenty rounds over a block of two words (Salmon et al. 2011, section 3.3)."""
    schedule = (low, high, low ^ high ^ PARITY)
    left, right = left + schedule[0], right + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            left = left + right
            right = left ^ (right << np.uint32(rotation) | right >> np.uint32(32 - rotation))
        left = left + schedule[(group + 1) % 3]
        right = right + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return left, right


def _uniform(bits: Array) -> Array:
    """Floats of [tiny, 1): 23 of the bits as the mantissa of a number in [1, 2), less 1."""
    tiny = np.finfo(np.float32).tiny
    above_one = bits >> np.uint32(9) | np.float32(1).view(np.uint32)
    return jnp.maximum(tiny, jax.lax.bitcast_convert_type(above_one, jnp.float32) - 1 + tiny)
