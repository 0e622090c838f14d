"""The layers of a Transformer: attention, feed-forward networks, rotary angles, norms, matrices."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig, RopeScaling
from jspec.core.attention import attend, hide_overflow
from jspec.core.cache import Block, Cache
from jspec.core.products import project
from jspec.parallel.sharding import named

# Cosines and sines, `[B, 1, T, C / 2]` each.
RotaryAngles = tuple[Array, Array]
# Keys and values of one layer's block, `[B, K, N, C]` each.
Rows = tuple[Array, Array]


class AttentionContext(NamedTuple):
    """What the queries of a layer may see, and where they are.

    Attributes:
      rotary: their rotary angles; None where positions are learned.
      mask: `[T, N]` or `[B, T, N]`, which rows of the block each query sees.
      first: `[B, T]` the first committed row that each query sees; None for all.
    """

    rotary: RotaryAngles | None
    mask: Array
    first: Array | None = None


class Attention(nn.Module):
    """Grouped-query attention of layer `index`."""

    config: ModelConfig
    index: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: AttentionContext,
        cache: Cache | None,
        block: Block | None,
        start: int,
    ) -> tuple[Array, Rows]:
        """`x` `[B, T, D]` -> `[B, T, D]` and the block's keys and values `[B, K, N, C]`."""
        c = self.config

        def heads(name: str, count: int, axis: str) -> Array:
            y = Linear(count * c.head_dim, (axis, "hidden_size"), c.attention_bias, name=name)(x)
            return y.reshape(*x.shape[:2], count, c.head_dim).swapaxes(1, 2)

        query = heads("query", c.num_attention_heads, "num_attention_heads")
        key = heads("key", c.num_key_value_heads, "num_key_value_heads")
        value = heads("value", c.num_key_value_heads, "num_key_value_heads")
        if c.use_qk_norm:
            query = NORMS[c.norm](c.norm_eps, name="query_norm")(query)
            key = NORMS[c.norm](c.norm_eps, name="key_norm")(key)
        if context.rotary is not None:
            query, key = apply_rotary(query, context.rotary), apply_rotary(key, context.rotary)
        scalar = c.query_pre_attn_scalar
        mixed, rows = attend_layer(
            query,
            key,
            value,
            context.mask,
            cache,
            block,
            start,
            layer=self.index,
            first=context.first,
            scale=None if scalar is None else scalar**-0.5,
            cap=c.attn_logit_softcapping,
        )
        mixed = mixed.swapaxes(1, 2).reshape(*x.shape[:2], c.num_attention_heads * c.head_dim)
        out = Linear(c.hidden_size, ("hidden_size", "num_attention_heads"), c.out_bias, name="out")
        return out(mixed), rows


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
    """Writes one layer's new rows into its block, and attends to the block and to its cache.

    Args:
      query: `[B, H, T, C]`; key, value: `[B, K, T, C]`, with their positions already applied.
      mask, cache, block, start: as `Model.forward` takes them.
      layer: which layer's rows of cache and block to use.
      first, scale, cap: as `attend` takes them.

    Returns:
      `[B, H, T, C]`, and the block's keys and values `[B, K, N, C]`.
    """
    if cache is not None:
        key, value = hide_overflow(key, value)
    if block is not None:
        put = jax.lax.dynamic_update_slice_in_dim
        key, value = put(block.k[layer], key, start, 2), put(block.v[layer], value, start, 2)
    past = () if cache is None else (cache.k[layer], cache.v[layer], cache.length)
    visible = mask.shape[-1]
    rows = key[:, :, :visible], value[:, :, :visible]
    mixed = attend(query, *rows, mask, *past, first=first, scale=scale, cap=cap)
    return mixed, (key, value)


class GatedMLP(nn.Module):
    """`down(activation(gate(x)) * up(y))`, where `y` is `x` unless another is given.

    Attributes:
      out_size: of the last axis of the result; None for D.
    """

    config: ModelConfig
    out_size: int | None = None

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """`[B, T, D]`, twice if `y` is given -> `[B, T, D]` or `[B, T, out_size]`."""
        c = self.config
        gate = ACTIVATIONS[c.hidden_act](_up(c, "gate")(x))
        return _down(c, self.out_size)(gate * _up(c, "up")(x if y is None else y))


class PlainMLP(nn.Module):
    """`down(activation(up(x)))`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, T, D]` -> `[B, T, D]`."""
        c = self.config
        return _down(c)(ACTIVATIONS[c.hidden_act](_up(c, "up")(x)))


def _up(c: ModelConfig, name: str) -> "Linear":
    axes = ("intermediate_size", "hidden_size")
    return Linear(c.intermediate_size, axes, c.mlp_bias, name=name)


def _down(c: ModelConfig, out_size: int | None = None) -> "Linear":
    axes = ("hidden_size", "intermediate_size")
    return Linear(out_size or c.hidden_size, axes, c.mlp_bias, name="down")


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": nn.relu,
}


def rotary_angles(
    positions: Array, head_dim: int, theta: float, scaling: RopeScaling | None
) -> RotaryAngles:
    """Cosines and sines of the rotary angles at `[B, T]`: `[B, 1, T, C / 2]` float32 each."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = _scale_frequencies(frequencies, scaling)
    rates = frequencies.astype(np.float32)[None, None, None]
    angles = positions[:, None, :, None].astype(jnp.float32) * rates

    def compute() -> RotaryAngles:
        return jnp.cos(angles), jnp.sin(angles)

    def identity() -> RotaryAngles:
        return jnp.ones_like(angles), jnp.zeros_like(angles)

    # No position is below 0, but XLA does not know it. It stores what a branch returns, and would
    # otherwise recompute the angles in every layer, for every head.
    return jax.lax.cond(jnp.all(positions >= 0), compute, identity)


def apply_rotary(x: Array, rotary: RotaryAngles) -> Array:
    """Rotates channel pairs `(c, c + C / 2)` of `[B, H, T, C]` by their angles."""
    cos, sin = rotary
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated.astype(x.dtype)


def _scale_frequencies(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divides frequencies by the factor: all of them, or (Llama 3.1) the low ones, with a ramp."""
    low = frequencies / scaling.factor
    if scaling.linear:
        return low
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    high = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return high * frequencies + (1 - high) * low


class RMSNorm(nn.Module):
    """Divides by the root mean square, rounds to `x`'s dtype, and multiplies by the weight."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[..., D]` -> `[..., D]`, computed in float32."""
        weight = self.param("weight", named(nn.initializers.ones, None), (x.shape[-1],))
        normed = _divide_by_rms(x.astype(jnp.float32), self.epsilon)
        return normed.astype(x.dtype) * _expand(weight, x)


class PlusOneRMSNorm(nn.Module):
    """Divides by the root mean square, multiplies by `1 + weight`, and then rounds."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[..., D]` -> `[..., D]`, computed in float32."""
        weight = self.param("weight", named(nn.initializers.zeros, None), (x.shape[-1],))
        normed = _divide_by_rms(x.astype(jnp.float32), self.epsilon)
        return (normed * (1.0 + _expand(weight.astype(jnp.float32), x))).astype(x.dtype)


class LayerNorm(nn.Module):
    """Subtracts the mean, divides by the standard deviation, and has a bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[..., D]` -> `[..., D]`, computed in float32."""
        weight = self.param("weight", named(nn.initializers.ones, None), (x.shape[-1],))
        bias = self.param("bias", named(nn.initializers.zeros, None), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        normed = _divide_by_rms(wide - wide.mean(axis=-1, keepdims=True), self.epsilon)
        weight, bias = (_expand(p.astype(jnp.float32), x) for p in (weight, bias))
        return (normed * weight + bias).astype(x.dtype)


NORMS: dict[str, type[RMSNorm] | type[PlusOneRMSNorm] | type[LayerNorm]] = {
    "rms": RMSNorm,
    "rms_plus_one": PlusOneRMSNorm,
    "layer": LayerNorm,
}


def _divide_by_rms(wide: Array, epsilon: float) -> Array:
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)


def _expand(weight: Array, x: Array) -> Array:
    """`weight` with as many axes as `x`, which it multiplies along the last one."""
    return weight.reshape((1,) * (x.ndim - 1) + weight.shape)


class Linear(nn.Module):
    """`x @ weight.T` and a bias; the weight is `[out, in]`, as files hold it.

    Attributes:
      features: how many outputs.
      axes: the names of the weight's two axes.
      dtype: of the result; None for that of `x`.
    """

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, T, in]` -> `[B, T, out]`."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        weight = self.param("weight", named(init, *self.axes), (self.features, x.shape[-1]))
        if not self.use_bias:
            return project(x, weight, self.dtype)
        init = named(nn.initializers.zeros, self.axes[0])
        bias = self.param("bias", init, (self.features,))
        y = project(x, weight, jnp.float32) + bias.astype(jnp.float32)[None, None]
        return y.astype(self.dtype or x.dtype)
