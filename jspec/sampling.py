"""How a token is chosen: one warp of the logits, one noise per position, one argmax.

The token at position t of a sequence is `argmax(warp(logits) + noise(key, t))`, whoever asks: plain
decoding, a node of a candidate tree, or a draft that guesses with the same dice. Adding Gumbel
noise to log-probabilities and taking the best samples from the law (the Gumbel-max trick).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.threefry import gumbel

EVERYTHING = 0


@struct.dataclass
class Sampling:
    """How each sequence samples; every field is an array `[B]`.

    Attributes:
      temperature: float32, 0 for greedy.
      top_k: int32, keep the k best tokens; 0 keeps all.
      top_p: float32, keep the smallest set of best tokens with at least this mass; 1 keeps all.
    """

    temperature: Array
    top_k: Array
    top_p: Array


def sampling(
    batch: int,
    *,
    temperature: float | list[float] = 0.0,
    top_k: int | list[int] = EVERYTHING,
    top_p: float | list[float] = 1.0,
) -> Sampling:
    """A `Sampling` for `batch` sequences from one value for all of them or one for each.

    Raises `ValueError` for a temperature below 0 or not finite, a `top_k` below 0, a `top_p`
    outside (0, 1].
    """

    def spread(name, values, dtype, valid, allowed):
        array = np.asarray(values, dtype)
        if array.ndim and array.shape != (batch,):
            raise ValueError(f"{name}={values}: one value, or {batch} of them, one a sequence")
        for value in np.atleast_1d(array):
            if not valid(value):
                raise ValueError(f"{name}={value}: {allowed}")
        return jnp.asarray(np.broadcast_to(array, (batch,)))

    return Sampling(
        temperature=spread(
            "temperature",
            temperature,
            np.float32,
            lambda t: np.isfinite(t) and t >= 0,
            "must be 0 (greedy) or a positive number",
        ),
        top_k=spread("top_k", top_k, np.int32, lambda k: k >= 0, "must be 0 (all) or more"),
        top_p=spread("top_p", top_p, np.float32, lambda p: 0 < p <= 1, "must lie in (0, 1]"),
    )


def warp(logits: Array, sampling: Sampling) -> Array:
    """Logits of the law that is sampled: divided by the temperature, `-inf` outside the top sets.

    In the order of the field: temperature, top-k, top-p. Tokens that tie at a threshold are kept
    together. Rows of temperature 0 are not divided.

    Args:
      logits: `[B, N, V]` float32.
    """
    hot = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
    logits = logits / hot[:, None, None]
    logits = jax.lax.cond(
        jnp.any(sampling.top_k != EVERYTHING), _keep_top_k, _keep_all, logits, sampling.top_k
    )
    return jax.lax.cond(jnp.any(sampling.top_p < 1), _keep_top_p, _keep_all, logits, sampling.top_p)


def noise(keys: Array, positions: Array, vocabulary: int, sampling: Sampling) -> Array:
    """Standard Gumbel noise `[B, A, V]` float32, a function of a sequence's key and position alone.

    Zero for greedy sequences, and not computed when all of them are.

    Args:
      keys: `[B]` typed keys, one a sequence.
      positions: `[B, A]`.
    """

    def draw() -> Array:
        one = functools.partial(gumbel, size=vocabulary)
        drawn = jax.vmap(jax.vmap(one, (None, 0)))(keys, positions)
        return jnp.where(sampling.temperature[:, None, None] > 0, drawn, 0.0)

    def nothing() -> Array:
        return jnp.zeros((*positions.shape, vocabulary), jnp.float32)

    return jax.lax.cond(jnp.any(sampling.temperature > 0), draw, nothing)


def pick(logits: Array, noise: Array, sampling: Sampling) -> Array:
    """The chosen token: `[B, N, V]` logits and noise -> `[B, N]` int32."""
    return jnp.argmax(warp(logits, sampling) + noise, axis=-1).astype(jnp.int32)


def _keep_all(logits: Array, _: Array) -> Array:
    return logits


def _keep_top_k(logits: Array, top_k: Array) -> Array:
    """Keeps the `top_k` `[B]` largest of `[B, N, V]`, and what ties with the last of them."""
    wanted = jnp.where(top_k == EVERYTHING, logits.shape[-1], top_k)[:, None]
    threshold = _threshold(logits, jnp.ones_like(logits), wanted.astype(jnp.float32))
    return jnp.where(_ordered(logits) >= threshold[..., None], logits, -jnp.inf)


def _keep_top_p(logits: Array, top_p: Array) -> Array:
    """Keeps the smallest set of likeliest tokens of `[B, N, V]` with a mass of `top_p` `[B]`."""
    threshold = _threshold(logits, jax.nn.softmax(logits), top_p[:, None])
    kept = (_ordered(logits) >= threshold[..., None]) | (top_p >= 1)[:, None, None]
    return jnp.where(kept, logits, -jnp.inf)


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
