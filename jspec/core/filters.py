"""Which tokens are left out: all but the k best, the smallest set with mass p, those too unlikely.

Tokens that tie at a threshold are kept together.
"""

import jax
import jax.numpy as jnp
from jax import Array

KEEP_ALL = 0


def keep_top_k(logits: Array, top_k: Array) -> Array:
    """Keeps the `top_k` `[B]` largest of `[B, N, V]`, all of them where it is 0."""
    wanted = jnp.where(top_k == KEEP_ALL, logits.shape[-1], top_k)[:, None]
    threshold = _threshold(logits, jnp.ones_like(logits), wanted.astype(jnp.float32))
    return jnp.where(_ordered(logits) >= threshold[..., None], logits, -jnp.inf)


def keep_top_p(logits: Array, top_p: Array) -> Array:
    """Keeps the smallest set of likeliest tokens of `[B, N, V]` with a mass of `top_p` `[B]`."""
    threshold = _threshold(logits, jax.nn.softmax(logits), top_p[:, None])
    kept = (_ordered(logits) >= threshold[..., None]) | (top_p >= 1)[:, None, None]
    return jnp.where(kept, logits, -jnp.inf)


def keep_min_p(logits: Array, min_p: Array) -> Array:
    """Keeps the tokens of `[B, N, V]` at least `min_p` `[B]` times as likely as the likeliest."""
    floor = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)[:, None, None]
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _threshold(values: Array, weights: Array, wanted: Array) -> Array:
    """The largest `t` such that `ordered(values) >= t` holds for a weight of at least `wanted`.

    Found bit by bit, 32 passes over `[B, N, V]`, which on CPU costs a tenth of sorting it.
    """
    ordered = _ordered(values)

    def narrow(i: Array, low: Array) -> Array:
        middle = low | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        mass = jnp.where(ordered >= middle[..., None], weights, 0.0).sum(axis=-1)
        return jnp.where(mass >= wanted, middle, low)

    return jax.lax.fori_loop(0, 32, narrow, jnp.zeros(values.shape[:-1], jnp.uint32))


def _ordered(values: Array) -> Array:
    """Unsigned integers in the order of float32 `values`; the two zeros are one."""
    values = jnp.where(values == 0, 0.0, values.astype(jnp.float32))
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))
