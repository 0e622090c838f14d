"""Matrices.

Norms over the last axis, all computed in float32.

Feed-forward networks: gated, and plain.

Rotary positions: angles, how they are stretched, and turning channels by them.

The attention sublayer, and the part of it that any model with a cache has.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig, RopeScaling
from jspec.core.attention import attend
from jspec.core.cache import Block, Cache
from jspec.parallel.sharding import named


class Linear(nn.Module):
    """`x @ weight.T`; the weight is `[out, in]`, as files hold it."""

    features: int
    axes: tuple[str, str]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        weight = self.param("weight", named(init, *self.axes), (self.features, x.shape[-1]))
        y = jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
        if self.use_bias:
            bias = named(nn.initializers.zeros, self.axes[0])
            y = y + self.param("bias", bias, (self.features,))[None, None]
        return y


class RMSNorm(nn.Module):
    """Divides by the root mean square; what is rounded to `x`'s dtype is then weighted."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", named(nn.initializers.ones, None), (x.shape[-1],))
        return _unit(x.astype(jnp.float32), self.epsilon).astype(x.dtype) * _along(weight, x)


class PlusOneRMSNorm(nn.Module):
    """Divides by the root mean square and multiplies by `1 + weight` before it is rounded."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", named(nn.initializers.zeros, None), (x.shape[-1],))
        unit = _unit(x.astype(jnp.float32), self.epsilon)
        return (unit * (1.0 + _along(weight.astype(jnp.float32), x))).astype(x.dtype)


class LayerNorm(nn.Module):
    """Subtracts the mean, divides by the standard deviation, and has a bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", named(nn.initializers.ones, None), (x.shape[-1],))
        bias = self.param("bias", named(nn.initializers.zeros, None), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        unit = _unit(wide - wide.mean(axis=-1, keepdims=True), self.epsilon)
        weight, bias = (_along(p.astype(jnp.float32), x) for p in (weight, bias))
        return (unit * weight + bias).astype(x.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "rms": RMSNorm,
    "rms_plus_one": PlusOneRMSNorm,
    "layer": LayerNorm,
}


def _unit(wide: Array, epsilon: float) -> Array:
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)


def _along(weight: Array, x: Array) -> Array:
    """`weight` as it multiplies the last axis of `x`."""
    return weight.reshape((1,) * (x.ndim - 1) + weight.shape)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": nn.relu,
}


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) * up(y))`, where `y` is `x` if it is not another.

    Attributes:
      out: how wide the result is; None for D.
    """

    config: ModelConfig
    out: int | None = None

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        c = self.config
        gate = ACTIVATIONS[c.activation](_widen(c, "gate")(x))
        return _narrow(c, self.out)(gate * _widen(c, "up")(x if y is None else y))


class PlainFeedForward(nn.Module):
    """`down(activation(up(x)))`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        return _narrow(c)(ACTIVATIONS[c.activation](_widen(c, "up")(x)))


def _widen(c: ModelConfig, name: str) -> Linear:
    return Linear(c.feedforward, ("feedforward", "width"), c.feedforward_bias, name=name)


def _narrow(c: ModelConfig, out: int | None = None) -> Linear:
    return Linear(out or c.width, ("width", "feedforward"), c.feedforward_bias, name="down")


Turn = tuple[Array, Array]


def turns(positions: Array, channels: int, theta: float, scaling: RopeScaling | None) -> Turn:
    """Cosines and sines of the rotary angles at `[B, T]`: `[B, 1, T, C / 2]` float32 each."""
    exponents = np.arange(0, channels, 2, dtype=np.float64) / channels
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = _stretch(frequencies, scaling)
    rates = frequencies.astype(np.float32)[None, None, None]
    angles = positions[:, None, :, None].astype(jnp.float32) * rates

    def turned() -> Turn:
        return jnp.cos(angles), jnp.sin(angles)

    def nowhere() -> Turn:
        return jnp.ones_like(angles), jnp.zeros_like(angles)

    # No position lies below 0, but XLA does not know it: what a branch gives it keeps, where it
    # would else compute the angles anew in every layer, for every head.
    return jax.lax.cond(jnp.all(positions >= 0), turned, nowhere)


def rotate(x: Array, turn: Turn) -> Array:
    """Turns channel pairs `(c, c + C / 2)` of `[B, H, T, C]` by their angles."""
    cos, sin = turn
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def _stretch(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divides frequencies by the factor: all of them, or (Llama 3.1) the slow ones, with a ramp."""
    slow = frequencies / scaling.factor
    if scaling.linear:
        return slow
    turns = scaling.original_context * frequencies / (2 * math.pi)
    ramp = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    fast = np.clip(ramp, 0.0, 1.0)
    return fast * frequencies + (1 - fast) * slow


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
